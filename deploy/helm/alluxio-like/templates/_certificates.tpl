{{/* What the certificates of services name, whatever address a service is called at. */}}
{{- define "al.serverName" -}}
{{ .Values.tls.serverName | default (printf "%s.%s.svc" (include "al.fullname" .) .Release.Namespace) }}
{{- end -}}

{{/* The names in the certificate of services, as a JSON list. */}}
{{- define "al.serverNames" -}}
{{ list (include "al.serverName" .) (include "al.masterHost" .) (printf "%s-master" (include "al.fullname" .)) "localhost" | uniq | toJson }}
{{- end -}}

{{/*
The content of a Secret with a certificate, as YAML of `annotations` and `data`: what is there, or one made now, where there is none, where
the one there is of another authority or has other names, or where half of its days are over.
(dict "top" $ "authority" (dict "ca.crt" … "ca.key" …) "namespace" … "secret" … "commonName" … "names" (list …) "addresses" (list …))
*/}}
{{- define "al.keptCertificate" -}}
{{- $found := lookup "v1" "Secret" .namespace .secret | default dict -}}
{{- $data := $found.data | default dict -}}
{{- $annotations := ($found.metadata | default dict).annotations | default dict -}}
{{- $certificate := "alluxio-like/certificate" -}}
{{- $wanted := printf "%s %s" .commonName (join "," .names) -}}
{{- $renewAfter := index $annotations "alluxio-like/renew-after" | default "0" -}}
{{- $isGood := and (hasKey $data "tls.crt") (hasKey $data "tls.key") (eq (index $data "ca.crt" | default "") (index .authority "ca.crt")) -}}
{{- $isNamed := eq (index $annotations $certificate | default "") $wanted -}}
{{- $isYoung := lt (now | unixEpoch | int64) ($renewAfter | int64) -}}
{{- if and (not (and $isGood $isNamed $isYoung)) (hasKey .authority "ca.key") -}}
{{- $days := int .top.Values.tls.selfSignedDays -}}
{{- $authority := buildCustomCert (index .authority "ca.crt") (index .authority "ca.key") -}}
{{- $made := genSignedCertWithKey .commonName .addresses .names $days $authority (genPrivateKey "ecdsa") -}}
{{- $data = dict "tls.crt" (b64enc $made.Cert) "tls.key" (b64enc $made.Key) "ca.crt" (index .authority "ca.crt") -}}
{{- $renewAfter = add (now | unixEpoch | int64) (mul $days 43200) | toString -}}
{{- else if not (and $isGood $isNamed) -}}
{{- fail (printf "tls: the Secret %s in %s needs a new certificate, and the Secret %s-ca has no ca.key to make it with: put the authority's key back for this upgrade, or delete all of this chart's Secrets with certificates for a new authority" .secret .namespace (include "al.tlsSecret" .top)) -}}
{{- end -}}
{{- dict "annotations" (dict $certificate $wanted "alluxio-like/renew-after" $renewAfter) "data" (pick $data "tls.crt" "tls.key" "ca.crt") | toYaml -}}
{{- end -}}
