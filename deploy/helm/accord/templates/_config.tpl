{{/* coordinator.toml: what the chart knows, and .Values.config beside it. Keys that both would set are refused. */}}

{{- define "accord.ownConfig" -}}
{{- $listen := .Values.listenHost -}}
{{- $replicated := include "accord.isReplicated" . -}}
{{- $certificates := dict "mode" .Values.certificates.mode "host_names" (include "accord.hostNames" . | fromJsonArray) -}}
{{- if eq .Values.certificates.mode "files" -}}
{{- $_ := set $certificates "certificate" "/etc/accord/tls/tls.crt" -}}
{{- $_ := set $certificates "key" "/etc/accord/tls/tls.key" -}}
{{- $_ := set $certificates "participant_cas" (printf "/etc/accord/participant-cas/%s" .Values.certificates.participantCas.key) -}}
{{- $_ := set $certificates "operator_cas" (printf "/etc/accord/operator-cas/%s" .Values.certificates.operatorCas.key) -}}
{{- end -}}
{{- $database := dict "migrate_on_start" (not (and $replicated .Values.migrations.enabled)) -}}
{{- $blobs := dict -}}
{{- $keys := dict -}}
{{- if .Values.identity.existingSecret -}}
{{- $_ := set $keys "folder" "/run/accord/keys" -}}
{{- end -}}
{{- if $replicated -}}
{{- if .Values.database.existingSecret -}}
{{- $_ := set $database "url_file" (printf "/run/accord/database/%s" .Values.database.urlKey) -}}
{{- else -}}
{{- $_ := set $database "url" .Values.database.url -}}
{{- end -}}
{{- $_ := set $blobs "url" .Values.blobs.url -}}
{{- if .Values.blobs.existingSecret -}}
{{- $_ := set $blobs "credentials_file" (printf "/run/accord/blobs/%s" .Values.blobs.credentialsKey) -}}
{{- end -}}
{{- end -}}
{{- dict
  "federation" .Values.federation
  "data_folder" "/var/lib/accord"
  "database" $database
  "blobs" $blobs
  "participants" (dict "listen" (printf "%s:8443" $listen) "public_address" .Values.participants.publicAddress)
  "enrollment" (dict "listen" (printf "%s:8444" $listen) "public_address" (include "accord.enrollmentAddress" .))
  "admin" (dict "listen" (printf "%s:8445" (ternary $listen "127.0.0.1" .Values.admin.exposed)) "reflection" .Values.admin.reflection)
  "web" (dict "listen" (ternary (printf "%s:8446" $listen) "" .Values.web.exposed))
  "health" (dict "http" (printf "%s:8080" $listen) "grpc" (printf "%s:8081" $listen))
  "certificates" $certificates
  "keys" $keys
  | toJson -}}
{{- end -}}

{{- define "accord.config" -}}
{{- $own := include "accord.ownConfig" . | fromJson -}}
{{- $all := deepCopy $own -}}
{{- range $section, $given := .Values.config -}}
{{- $set := index $own $section -}}
{{- if not (kindIs "map" $given) -}}
{{- fail (printf "config.%s: a section of coordinator.toml is wanted here; what stands outside of sections is set by the chart itself" $section) -}}
{{- end -}}
{{- if not (hasKey $all $section) -}}
{{- $_ := set $all $section dict -}}
{{- end -}}
{{- range $key, $value := $given -}}
{{- if and $set (hasKey $set $key) -}}
{{- fail (printf "config.%s.%s is set by the chart itself; see its values for %s" $section $key $section) -}}
{{- end -}}
{{- if kindIs "float64" $value -}}
{{- /* YAML's whole numbers arrive as floats. */ -}}
{{- $value = ternary (int64 $value) $value (eq $value (floor $value)) -}}
{{- end -}}
{{- $_ := set (index $all $section) $key $value -}}
{{- end -}}
{{- end -}}
{{- if ne .Values.service.externalTrafficPolicy "Local" -}}
{{- /* All partners come from the addresses of nodes then: a limit by address would be one for all of them together. */ -}}
{{- $_ := set $all "limits" (mergeOverwrite (dict "connections_per_address" 0) (default dict (index $all "limits"))) -}}
{{- end -}}
{{- $all | toToml -}}
{{- end -}}
