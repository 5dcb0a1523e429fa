{{/* The configuration file of all services: what this chart sets, then what `config` says. */}}
{{- define "al.config" -}}
{{- $common := dict "log_level" .Values.logLevel "log_format" "json" "http_bind" (printf "0.0.0.0:%v" .Values.metrics.port) -}}
{{- if .Values.tls.enabled -}}
{{- $files := dict "certificate" "/etc/alluxio-like/tls/tls.crt" "key" "/etc/alluxio-like/tls/tls.key" "ca" "/etc/alluxio-like/tls/ca.crt" "server_name" (include "al.serverName" .) -}}
{{- $_ := set $common "tls" $files -}}
{{- else -}}
{{- $_ := set $common "insecure" true -}}
{{- end -}}
{{- $token := "/etc/alluxio-like/token/token" -}}
{{- $master := dict "home" "/var/lib/alluxio-like/master" "bind" (printf "0.0.0.0:%v" .Values.master.service.port) "token_file" $token -}}
{{- with .Values.master.metadata.url -}}
{{- $_ := set $master "metadata_url" . -}}
{{- end -}}
{{- $address := printf "%s:%v" (include "al.masterHost" .) .Values.master.service.port -}}
{{- $worker := dict "master" $address "home" .Values.worker.hostPath "token_file" $token "bind" (printf "0.0.0.0:%v" .Values.worker.port) "data_bind" (printf "0.0.0.0:%v" .Values.worker.dataPort) "allow_root_disk" .Values.worker.allowRootDisk "drain_s" .Values.worker.drainSeconds "cap_unpersisted" .Values.worker.capUnpersisted -}}
{{- with .Values.worker.doorUsers -}}
{{- $_ := set $worker "door_users" . -}}
{{- end -}}
{{- /* The kubelet starts a container that failed twice only after 10 s, later ones after longer. */ -}}
{{- $client := dict "master" $address -}}
{{- if .Values.clientTokens.secretName -}}
{{- /* The cluster's token opens what theirs do: commands run in these pods show it. */ -}}
{{- $_ := set $client "token_file" $token -}}
{{- range list $master $worker -}}
{{- $_ := set . "client_token_file" "/etc/alluxio-like/client-tokens/tokens" -}}
{{- end -}}
{{- end -}}
{{- $fuse := dict "mountpoint" (include "al.mountPoint" .) "path" .Values.fuse.path "give_up_s" 60 "client" (dict "token_file" $token) -}}
{{- $ours := dict "common" $common "master" $master "worker" $worker "client" $client "fuse" $fuse -}}
{{- $all := mustMergeOverwrite $ours (deepCopy .Values.config) -}}
{{- include "al.makeWhole" $all -}}
{{- $all | toToml -}}
{{- end -}}

{{/* Makes whole numbers of those that are: Helm reads all as fractions, and would write 67108864 as 6.7108864e+07. Renders nothing. */}}
{{- define "al.makeWhole" -}}
{{- $map := . -}}
{{- range $key, $value := $map -}}
{{- if kindIs "map" $value -}}
{{- include "al.makeWhole" $value -}}
{{- else if and (kindIs "float64" $value) (eq (toJson $value) (toJson (floor $value))) -}}
{{- $_ := set $map $key (int64 $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The mounts that are declared, as `alluxio-like mount --from` reads them. */}}
{{- define "al.mountsFile" -}}
{{- $mounts := list -}}
{{- range .Values.mounts -}}
{{- $options := dict -}}
{{- range $name, $value := .options | default dict -}}
{{- $_ := set $options $name (kindIs "string" $value | ternary $value (toJson $value)) -}}
{{- end -}}
{{- range $name, $reference := .secretOptions | default dict -}}
{{- $_ := set $options $name (printf "file:/var/run/secrets/alluxio-like/stores/%s/%s" $reference.secret $reference.key) -}}
{{- end -}}
{{- $mounts = append $mounts (dict "path" .path "uri" .uri "options" $options "sync_interval" (.syncInterval | default "")) -}}
{{- end -}}
{{- $mounts | toPrettyJson -}}
{{- end -}}
