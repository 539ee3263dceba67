{{/*
Names. A StatefulSet's pods carry its name with a hash of up to ten characters in a label of at
most 63, so a name may have 52; a longer one is cut and ends in a hash of the whole, so that two
long names stay two.
*/}}
{{- define "hypercache.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "hypercache.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if contains $name .Release.Name }}{{ $full = .Release.Name }}{{ end -}}
{{- /* Names of releases may have dots, those of Services may not. */ -}}
{{- $full = default $full .Values.fullnameOverride | replace "." "-" -}}
{{- if gt (len $full) 52 -}}
{{- $full = printf "%s-%s" ($full | trunc 43 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- end -}}
{{- $full | trimSuffix "-" }}
{{- end }}

{{- define "hypercache.headless" -}}
{{ include "hypercache.fullname" . }}-headless
{{- end }}

{{- define "hypercache.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "hypercache.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The domain of the pods' own names. */}}
{{- define "hypercache.podDomain" -}}
{{ include "hypercache.headless" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{- define "hypercache.selectorLabels" -}}
app.kubernetes.io/name: {{ include "hypercache.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hypercache.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "hypercache.selectorLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | trimAll "-_." | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
