{{- define "participant.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (default .Chart.Name .Values.nameOverride) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (default .Chart.Name .Values.nameOverride) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "participant.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: participant
{{- end -}}

{{- define "participant.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: accord
{{ include "participant.selector" . }}
{{- end -}}

{{- define "participant.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "participant.check" -}}
{{- if not .Values.policy -}}
{{- fail "policy is empty: what this site agrees to is its own to say. Begin with deploy/examples/policy.toml and --set-file policy=policy.toml" -}}
{{- end -}}
{{- if and .Values.joinToken.existingSecret .Values.certificates.existingSecret -}}
{{- fail "joinToken.existingSecret and certificates.existingSecret: a site enrols, or has certificates of its own PKI" -}}
{{- end -}}
{{- if not (or .Values.joinToken.existingSecret .Values.certificates.existingSecret) -}}
{{- fail "joinToken.existingSecret is empty: kubectl create secret generic join-token --from-file=token=bank.token (or, with certificates of your own PKI, certificates.existingSecret)" -}}
{{- end -}}
{{- if and .Values.certificates.existingSecret (not (default dict .Values.config.coordinator).address) -}}
{{- fail "certificates.existingSecret needs config.coordinator.address: without a join token nothing says whom to dial" -}}
{{- end -}}
{{- if not .Values.models.sources -}}
{{- fail "models.sources is empty: name at least one base model, such as SmolLM2-135M-Instruct or hub:owner/name@revision" -}}
{{- end -}}
{{- if (default dict .Values.config.metrics).certificate -}}
{{- fail "config.metrics.certificate: probes and monitors of the chart speak plain HTTP; networkPolicy.monitoring says who may read metrics" -}}
{{- end -}}
{{- if not (or .Values.data.existingClaim .Values.extraVolumes) -}}
{{- fail "data.existingClaim is empty: name the claim with this site's records" -}}
{{- end -}}
{{- end -}}

{{/* participant.toml: what the chart knows, and .Values.config beside it. Keys that both would set are refused. */}}
{{- define "participant.config" -}}
{{- $models := list -}}
{{- range .Values.models.sources -}}
{{- $models = append $models (dict "source" (ternary . (printf "/srv/accord/models/%s" .) (or (hasPrefix "hub:" .) (hasPrefix "/" .)))) -}}
{{- end -}}
{{- $data := dict "train_file" (printf "/srv/accord/data/%s" .Values.data.trainFile) -}}
{{- if .Values.data.heldOutFile -}}
{{- $_ := set $data "held_out_file" (printf "/srv/accord/data/%s" .Values.data.heldOutFile) -}}
{{- end -}}
{{- $charter := dict "mode" "pinned" "file" "/var/lib/accord/charter.json" -}}
{{- if .Values.charter.digest -}}
{{- $_ := set $charter "digest" .Values.charter.digest -}}
{{- end -}}
{{- $own := dict
  "state_directory" "/var/lib/accord/state"
  "policy_file" "/etc/accord/policy.toml"
  "base_models" $models
  "data" $data
  "charter" $charter
  "metrics" (dict "host" "0.0.0.0" "port" 9464)
-}}
{{- if .Values.certificates.existingSecret -}}
{{- $_ := set $own "certificates" (dict "certificate" "/run/certificates/tls.crt" "key" "/run/certificates/tls.key" "trust" "/run/certificates/ca.crt") -}}
{{- end -}}
{{- $all := deepCopy $own -}}
{{- range $section, $given := .Values.config -}}
{{- if kindIs "map" $given -}}
{{- if not (hasKey $own $section) -}}
{{- $_ := set $all $section dict -}}
{{- end -}}
{{- range $key, $value := $given -}}
{{- if hasKey (default dict (index $own $section)) $key -}}
{{- fail (printf "config.%s.%s is set by the chart itself" $section $key) -}}
{{- end -}}
{{- if kindIs "float64" $value -}}
{{- /* YAML's whole numbers arrive as floats. */ -}}
{{- $value = ternary (int64 $value) $value (eq $value (floor $value)) -}}
{{- end -}}
{{- $_ := set (index $all $section) $key $value -}}
{{- end -}}
{{- else if hasKey $own $section -}}
{{- fail (printf "config.%s is set by the chart itself" $section) -}}
{{- else -}}
{{- $_ := set $all $section (ternary (int64 $given) $given (kindIs "float64" $given)) -}}
{{- end -}}
{{- end -}}
{{- $all | toToml -}}
{{- end -}}

{{- define "participant.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "participant.mounts" -}}
- name: state
  mountPath: /var/lib/accord
- name: config
  mountPath: /etc/accord
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if .Values.certificates.existingSecret }}
- name: certificates
  mountPath: /run/certificates
  readOnly: true
{{- end }}
{{- end -}}
