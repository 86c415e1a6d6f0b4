{{/* The coordinator's pod, the same in a StatefulSet and in a Deployment. Fits the restricted pod security standard. */}}

{{- define "accord.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "accord.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What both the coordinator and the job of migrations reach the state by. Secrets are files, which no child process and
no crash report inherits. */}}
{{- define "accord.stateMounts" -}}
{{- if .Values.database.existingSecret }}
- name: database
  mountPath: /run/accord/database
  readOnly: true
{{- end }}
{{- if .Values.blobs.existingSecret }}
- name: blobs
  mountPath: /run/accord/blobs
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "accord.stateVolumes" -}}
{{- with .Values.database.existingSecret }}
- name: database
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.blobs.existingSecret }}
- name: blobs
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "accord.mounts" -}}
- name: data
  mountPath: /var/lib/accord
{{- if .Values.identity.existingSecret }}
- name: keys
  mountPath: /run/accord/keys
  readOnly: true
{{- end }}
- name: config
  mountPath: /etc/accord
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if eq .Values.certificates.mode "files" }}
- name: tls
  mountPath: /etc/accord/tls
  readOnly: true
- name: participant-cas
  mountPath: /etc/accord/participant-cas
  readOnly: true
- name: operator-cas
  mountPath: /etc/accord/operator-cas
  readOnly: true
{{- end }}
{{- include "accord.stateMounts" . }}
{{- end -}}

{{- define "accord.pod" -}}
metadata:
  labels:
    {{- include "accord.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "accord.config" . | sha256sum | trunc 32 }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "accord.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "accord.podSecurity" . | nindent 4 }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.affinity }}
  affinity:
    {{- toYaml .Values.affinity | nindent 4 }}
  {{- else if include "accord.isReplicated" . }}
  affinity:
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: kubernetes.io/hostname
            labelSelector:
              matchLabels:
                {{- include "accord.selector" . | nindent 16 }}
  {{- end }}
  {{- if .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
  {{- else if include "accord.isReplicated" . }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: topology.kubernetes.io/zone
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "accord.selector" . | nindent 10 }}
  {{- end }}
  {{- if not .Values.identity.existingSecret }}
  initContainers:
    # Makes the CA, the signing key and the first operator's certificate, once: what is there is left alone.
    - name: init
      image: {{ include "accord.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [accord-coordinator, init, --config, /etc/accord/coordinator.toml]
      securityContext:
        {{- include "accord.containerSecurity" . | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        {{- include "accord.mounts" . | nindent 8 }}
  {{- end }}
  containers:
    - name: coordinator
      image: {{ include "accord.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve, --config, /etc/accord/coordinator.toml]
      {{- with .Values.extraEnv }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: participants
          containerPort: 8443
        - name: enrollment
          containerPort: 8444
        {{- if .Values.admin.exposed }}
        - name: admin
          containerPort: 8445
        {{- end }}
        {{- if .Values.web.exposed }}
        - name: web
          containerPort: 8446
        {{- end }}
        - name: health
          containerPort: 8080
      # Alive is that the event loop turns; ready is that the database answers and the driver turns.
      # A coordinator that waits for its database is not restarted.
      startupProbe:
        httpGet:
          path: /healthz
          port: health
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet:
          path: /healthz
          port: health
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /readyz
          port: health
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      {{- if .Values.preStopSeconds }}
      lifecycle:
        preStop:
          exec:
            command: [sleep, {{ .Values.preStopSeconds | quote }}]
      {{- end }}
      securityContext:
        {{- include "accord.containerSecurity" . | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        {{- include "accord.mounts" . | nindent 8 }}
  volumes:
    - name: config
      configMap:
        name: {{ include "accord.fullname" . }}
    - name: tmp
      emptyDir:
        sizeLimit: 64Mi
    {{- if include "accord.isReplicated" . }}
    - name: data
      emptyDir:
        sizeLimit: {{ .Values.scratchSize }}
    {{- else if .Values.persistence.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ .Values.persistence.existingClaim }}
    {{- end }}
    {{- with .Values.identity.existingSecret }}
    - name: keys
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- if eq .Values.certificates.mode "files" }}
    - name: tls
      secret:
        secretName: {{ include "accord.tlsSecret" . }}
        defaultMode: 0440
    - name: participant-cas
      configMap:
        name: {{ .Values.certificates.participantCas.configMap }}
    - name: operator-cas
      configMap:
        name: {{ .Values.certificates.operatorCas.configMap }}
    {{- end }}
    {{- with include "accord.stateVolumes" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}
