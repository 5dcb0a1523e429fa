{{/* What the certificates of services name, whatever address a service is called at. */}}
{{- define "al.serverName" -}}
{{ .Values.tls.serverName | default (printf "%s.%s.svc" (include "al.fullname" .) .Release.Namespace) }}
{{- end -}}
