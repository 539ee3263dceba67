{{/* Thousandths of a core in a Kubernetes quantity: "2", 2, 0.5 or "500m". */}}
{{- define "hypercache.milliCpu" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text -}}
{{ trimSuffix "m" $text | int64 }}
{{- else -}}
{{ mulf (float64 $text) 1000 | ceil | int64 }}
{{- end }}
{{- end }}

{{/* Bytes in a Kubernetes quantity: 4Gi, 512M, 1.5Gi, 1073741824. */}}
{{- define "hypercache.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text -}}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $unit := trimPrefix $number $text -}}
{{- if kindIs "float64" . -}}
{{ int64 . }}
{{- else -}}
{{ mulf (float64 $number) (get $units $unit) | floor | int64 }}
{{- end }}
{{- end }}

{{/* A number without an exponent, anything else as it is. */}}
{{- define "hypercache.plain" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end }}
{{- end }}

{{/*
What a PodDisruptionBudget says, of how many pods, as a number: percentages are rounded up, as
Kubernetes does.
*/}}
{{- define "hypercache.podsOf" -}}
{{- $text := include "hypercache.plain" .value -}}
{{- if hasSuffix "%" $text -}}
{{ divf (mulf (trimSuffix "%" $text | float64) .pods) 100 | ceil | int64 }}
{{- else -}}
{{ int64 $text }}
{{- end }}
{{- end }}
