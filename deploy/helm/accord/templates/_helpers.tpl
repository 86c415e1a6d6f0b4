{{/* Names and labels, and what several templates need to know. */}}

{{- define "accord.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "accord.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "accord.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "accord.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "accord.selector" -}}
app.kubernetes.io/name: {{ include "accord.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: coordinator
{{- end -}}

{{- define "accord.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "accord.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: accord
{{- end -}}

{{- define "accord.labels" -}}
{{ include "accord.commonLabels" . }}
app.kubernetes.io/component: coordinator
{{- end -}}

{{- define "accord.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "accord.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "accord.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* "true" where state lies in PostgreSQL and S3, so that there may be several coordinators. */}}
{{- define "accord.isReplicated" -}}
{{- if and (or .Values.database.existingSecret .Values.database.url) .Values.blobs.url -}}true{{- end -}}
{{- end -}}

{{- define "accord.tlsSecret" -}}
{{- default (printf "%s-tls" (include "accord.fullname" .)) .Values.certificates.existingSecret -}}
{{- end -}}

{{/* Host of "host:port", without an IPv6 address's brackets. */}}
{{- define "accord.host" -}}
{{- regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" -}}
{{- end -}}

{{- define "accord.enrollmentAddress" -}}
{{- if .Values.enrollment.publicAddress -}}
{{- .Values.enrollment.publicAddress -}}
{{- else -}}
{{- regexReplaceAll ":[0-9]+$" .Values.participants.publicAddress ":8444" -}}
{{- end -}}
{{- end -}}

{{/* Names of the coordinator's certificate, as JSON: public hosts first, then the Services', then what else is wanted. */}}
{{- define "accord.hostNames" -}}
{{- $public := list (include "accord.host" .Values.participants.publicAddress) (include "accord.host" (include "accord.enrollmentAddress" .)) -}}
{{- $name := include "accord.fullname" . -}}
{{- $admin := printf "%s-admin" $name -}}
{{- $web := printf "%s-web" $name -}}
{{- $names := list $name (printf "%s.%s.svc" $name .Release.Namespace) -}}
{{- if .Values.admin.exposed -}}
{{- $names = concat $names (list $admin (printf "%s.%s.svc" $admin .Release.Namespace)) -}}
{{- end -}}
{{- if .Values.web.exposed -}}
{{- $names = concat $names (list $web (printf "%s.%s.svc" $web .Release.Namespace)) -}}
{{- end -}}
{{- if and .Values.certificates.certManager.enabled (not .Values.certificates.certManager.internalNames) -}}
{{- $names = list -}}
{{- end -}}
{{- concat $public $names .Values.hostNames | uniq | toJson -}}
{{- end -}}

{{/* Whom pods may dial: a list of NetworkPolicyEgressRule. */}}
{{- define "accord.egress" -}}
{{- if or .Values.networkPolicy.egress (include "accord.isReplicated" .) -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- if .Values.networkPolicy.egress }}
{{ toYaml .Values.networkPolicy.egress }}
{{- else }}
- ports:
    - port: 5432
    - port: 443
{{- end }}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* What cannot be said in values.schema.json: combinations. */}}
{{- define "accord.check" -}}
{{- if not .Values.federation -}}
{{- fail "federation is empty: name it (1 to 40 of a-z, 0-9 and -). The name stands in every certificate, and cannot change later" -}}
{{- end -}}
{{- if not .Values.participants.publicAddress -}}
{{- fail "participants.publicAddress is empty: say which host:port partners dial, such as accord.example.org:8443" -}}
{{- end -}}
{{- $database := or .Values.database.existingSecret .Values.database.url -}}
{{- if and $database (not .Values.blobs.url) -}}
{{- fail "database is set and blobs.url is not: PostgreSQL goes with S3 (blobs.url: s3://bucket/prefix), or leave both empty for a volume" -}}
{{- end -}}
{{- if and .Values.blobs.url (not $database) -}}
{{- fail "blobs.url is set and database is not: S3 goes with PostgreSQL (database.existingSecret), or leave both empty for a volume" -}}
{{- end -}}
{{- if and .Values.database.existingSecret .Values.database.url -}}
{{- fail "database.existingSecret and database.url are two answers to one question: leave out one" -}}
{{- end -}}
{{- if regexMatch "^[^/]*//[^/@]*:[^/@]*@" .Values.database.url -}}
{{- fail "database.url has a password in it, which would stand in a ConfigMap: put the URL into a Secret and name that in database.existingSecret" -}}
{{- end -}}
{{- if and (include "accord.isReplicated" .) (not .Values.identity.existingSecret) -}}
{{- fail "with PostgreSQL and S3 there is no volume to keep keys on, and all replicas need the same: make them once with `accord-coordinator init` and name their Secret in identity.existingSecret (see docs/kubernetes.md)" -}}
{{- end -}}
{{- if eq .Values.certificates.mode "files" -}}
{{- if not (or .Values.certificates.existingSecret .Values.certificates.certManager.enabled) -}}
{{- fail "certificates.mode=files needs certificates.existingSecret, or certificates.certManager.enabled=true" -}}
{{- end -}}
{{- if not (and .Values.certificates.participantCas.configMap .Values.certificates.operatorCas.configMap) -}}
{{- fail "certificates.mode=files needs certificates.participantCas.configMap and certificates.operatorCas.configMap" -}}
{{- end -}}
{{- else if or .Values.certificates.existingSecret .Values.certificates.certManager.enabled -}}
{{- fail "certificates.existingSecret and certificates.certManager go with certificates.mode=files" -}}
{{- end -}}
{{- if and .Values.certificates.certManager.enabled (not .Values.certificates.certManager.issuerRef.name) -}}
{{- fail "certificates.certManager.issuerRef.name says which issuer signs the listeners' certificate" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled -}}
{{- fail "serviceMonitor and podMonitor would count everything twice: enable one of them" -}}
{{- end -}}
{{- if .Values.config.metrics -}}
{{- fail "config.metrics: the chart's monitors, policy and probes know the health port alone; networkPolicy.monitoring says who may read metrics there" -}}
{{- end -}}
{{- if ge (int .Values.preStopSeconds) (int .Values.terminationGracePeriodSeconds) -}}
{{- fail "terminationGracePeriodSeconds counts preStopSeconds in, and must be larger" -}}
{{- end -}}
{{- end -}}
