{{/* Names, labels, and what several pods have in common. */}}

{{- define "al.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "al.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "al.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "al.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* (list $ "master") */}}
{{- define "al.selector" -}}
app.kubernetes.io/name: {{ include "al.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "al.labels" -}}
{{- $top := index . 0 -}}
{{ include "al.selector" . }}
app.kubernetes.io/version: {{ $top.Values.image.tag | default $top.Chart.AppVersion | trunc 63 | trimAll "._-" | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version }}
{{- end -}}

{{- define "al.image" -}}
{{- with .Values.image.digest -}}
{{ $.Values.image.repository }}@{{ . }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "al.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "al.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "al.masterHost" -}}
{{ include "al.fullname" . }}-master.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "al.tokenSecret" -}}
{{ .Values.token.existingSecret | default (printf "%s-token" (include "al.fullname" .)) }}
{{- end -}}

{{- define "al.tlsSecret" -}}
{{ .Values.tls.secretName | default (printf "%s-tls" (include "al.fullname" .)) }}
{{- end -}}

{{- define "al.clientTlsSecret" -}}
{{ printf "%s-client-tls" (include "al.fullname" .) }}
{{- end -}}

{{- define "al.mountPoint" -}}
{{ printf "%s/%s" (.Values.fuse.hostPath | trimSuffix "/") .Values.fuse.name }}
{{- end -}}

{{/* The priority class of (list $ "mount"|"service"), with its key; nothing for the cluster's default. */}}
{{- define "al.priority" -}}
{{- $top := index . 0 -}}{{- $kind := index . 1 -}}
{{- $name := index $top.Values.priorityClasses (printf "%sName" $kind) -}}
{{- if and (not $name) $top.Values.priorityClasses.create -}}
{{- $name = printf "%s-%s" (include "al.fullname" $top) $kind -}}
{{- end -}}
{{- with $name -}}
priorityClassName: {{ . }}
{{- end -}}
{{- end -}}

{{/* What every pod begins with: (list $ "component"). */}}
{{- define "al.podMeta" -}}
{{- $top := index . 0 -}}{{- $component := index . 1 -}}
labels:
  {{- include "al.labels" . | nindent 2 }}
annotations:
  {{- if ne $component "holder" }}
  checksum/config: {{ include "al.config" $top | sha256sum }}
  {{- end }}
  kubectl.kubernetes.io/default-container: {{ $component }}
  {{- with (index $top.Values $component).podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "al.podCommon" -}}
serviceAccountName: {{ include "al.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A container's image, and the security of one that is no more than a process. */}}
{{- define "al.imageLines" -}}
image: {{ include "al.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{- define "al.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* As the image's user; Secrets are given to its group. */}}
{{- define "al.podUser" -}}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "al.httpProbe" -}}
httpGet: {path: /healthz, port: http, scheme: {{ .Values.tls.enabled | ternary "HTTPS" "HTTP" }}}
{{- end -}}

{{/* The Secrets that mounts name, as a JSON list. Their volumes are numbered, since a Secret may have a name that no volume may have. */}}
{{- define "al.storeSecrets" -}}
{{- $names := list -}}
{{- range .Values.mounts -}}
{{- range $option, $reference := .secretOptions | default dict -}}
{{- $names = append $names $reference.secret -}}
{{- end -}}
{{- end -}}
{{- concat $names .Values.stores.secrets | uniq | sortAlpha | toJson -}}
{{- end -}}

{{- define "al.storeMounts" -}}
{{- range $number, $name := include "al.storeSecrets" . | fromJsonArray }}
{{- if $number }}
{{ end -}}
- {name: store-{{ $number }}, mountPath: /var/run/secrets/alluxio-like/stores/{{ $name }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "al.storeVolumes" -}}
{{- range $number, $name := include "al.storeSecrets" . | fromJsonArray }}
{{- if $number }}
{{ end -}}
- name: store-{{ $number }}
  secret: {secretName: {{ $name }}, defaultMode: 0400}
{{- end }}
{{- end -}}

{{- define "al.tlsMounts" -}}
{{- if .Values.tls.enabled -}}
- {name: tls, mountPath: /etc/alluxio-like/tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "al.tlsVolumes" -}}
{{- if .Values.tls.enabled -}}
- name: tls
  secret: {secretName: {{ include "al.tlsSecret" . }}, defaultMode: 0400}
{{- end }}
{{- end -}}

{{- define "al.configMounts" -}}
- {name: config, mountPath: /etc/alluxio-like/config, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "al.configVolumes" -}}
- name: config
  configMap: {name: {{ include "al.fullname" . }}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- end -}}

{{- define "al.tokenMounts" -}}
- {name: token, mountPath: /etc/alluxio-like/token, readOnly: true}
{{- end -}}

{{- define "al.tokenVolumes" -}}
- name: token
  secret:
    secretName: {{ include "al.tokenSecret" . }}
    defaultMode: 0400
    items: [{key: {{ .Values.token.key }}, path: token}]
{{- end -}}

{{/* The tokens of clients, for who asks for them: master and workers. */}}
{{- define "al.clientTokensMounts" -}}
{{- if .Values.clientTokens.secretName -}}
- {name: client-tokens, mountPath: /etc/alluxio-like/client-tokens, readOnly: true}
{{- end }}
{{- end -}}

{{- define "al.clientTokensVolumes" -}}
{{- if .Values.clientTokens.secretName -}}
- name: client-tokens
  secret:
    secretName: {{ .Values.clientTokens.secretName }}
    defaultMode: 0400
    items: [{key: {{ .Values.clientTokens.key }}, path: tokens}]
{{- end }}
{{- end -}}

{{- define "al.commonEnv" -}}
- {name: ALLUXIO_LIKE_CONFIG, value: /etc/alluxio-like/config/config.toml}
- {name: HOME, value: /tmp}
{{- end -}}

{{/* Whom a NetworkPolicy lets in: pods of ours (list $ "component"…) and clients; and who scrapes. */}}
{{- define "al.fromOurs" -}}
{{- $top := index . 0 -}}
{{- range $number, $component := slice . 1 }}
{{- if $number }}
{{ end -}}
- podSelector:
    matchLabels:
      {{- include "al.selector" (list $top $component) | nindent 6 }}
{{- end }}
{{- with $top.Values.networkPolicy.clients }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- define "al.fromMonitoring" -}}
- ports:
    - {port: http}
  from:
    {{- toYaml .Values.networkPolicy.monitoring | nindent 4 }}
{{- end -}}
