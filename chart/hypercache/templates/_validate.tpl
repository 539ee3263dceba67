{{/* Refuses values that would make a cluster that does not keep its word. */}}
{{- define "hypercache.validate" -}}
{{- include "hypercache.validateQos" . -}}
{{- include "hypercache.validateDisruptions" . -}}
{{- include "hypercache.validateTermination" . -}}
{{- include "hypercache.validateCredentials" . -}}
{{- include "hypercache.validateServices" . -}}
{{- include "hypercache.validateVariables" . -}}
{{- end }}

{{- define "hypercache.validateVariables" -}}
{{- $seen := dict -}}
{{- range include "hypercache.environment" . | fromYamlArray -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "extraEnv has %s, which is set already: use the value that sets it, or settings" .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- end -}}
{{- range concat (include "hypercache.mounts" . | fromYamlArray) (.Values.extraVolumes | default list) -}}
{{- if hasKey $seen (printf "volume %s" .name) -}}
{{- fail (printf "extraVolumes has %s, a volume that is there already: give it another name" .name) -}}
{{- end -}}
{{- $_ := set $seen (printf "volume %s" .name) true -}}
{{- end -}}
{{- end }}

{{- define "hypercache.validateQos" -}}
{{- $limits := .Values.resources.limits -}}
{{- $requests := .Values.resources.requests | default dict -}}
{{- if .Values.cpuPinning.enabled -}}
{{- $otherwise := "Or set cpuPinning.enabled=false and do without CPUs of its own." -}}
{{- if not $limits.cpu -}}
{{- fail (printf "resources.limits.cpu is not set, so the pod would not be Guaranteed: set it to a whole number of cores. %s" $otherwise) -}}
{{- end -}}
{{- $milli := include "hypercache.milliCpu" $limits.cpu | int64 -}}
{{- if or (lt $milli 1000) (ne (mod $milli 1000) 0) -}}
{{- fail (printf "resources.limits.cpu=%v is no whole number of cores, so no kubelet would give them to the pod alone: set it to 1, 2, 4 …. %s" $limits.cpu $otherwise) -}}
{{- end -}}
{{- if not $limits.memory -}}
{{- fail (printf "resources.limits.memory is not set, so the pod would not be Guaranteed: set it, for example to 4Gi. %s" $otherwise) -}}
{{- end -}}
{{- if and $requests.cpu (ne (include "hypercache.milliCpu" $requests.cpu) (include "hypercache.milliCpu" $limits.cpu)) -}}
{{- fail (printf "resources.requests.cpu=%v is not resources.limits.cpu=%v, so the pod would not be Guaranteed: set both to the same, or the limit alone. %s" $requests.cpu $limits.cpu $otherwise) -}}
{{- end -}}
{{- if and $requests.memory (ne (include "hypercache.bytes" $requests.memory) (include "hypercache.bytes" $limits.memory)) -}}
{{- fail (printf "resources.requests.memory=%v is not resources.limits.memory=%v, so the pod would not be Guaranteed: set both to the same, or the limit alone. %s" (include "hypercache.plain" $requests.memory) (include "hypercache.plain" $limits.memory) $otherwise) -}}
{{- end -}}
{{- else if .Values.cpuPinning.requireExclusive -}}
{{- fail "cpuPinning.requireExclusive=true needs cpuPinning.enabled=true: shared CPUs would keep every node from starting" -}}
{{- end -}}
{{- if and $limits.memory (lt (include "hypercache.bytes" $limits.memory | int64) 67108864) -}}
{{- fail (printf "resources.limits.memory=%v is too little for a node: set at least 64Mi, better 2Gi" (include "hypercache.plain" $limits.memory)) -}}
{{- end -}}
{{- if $limits.memory -}}
{{- $items := div (mul (include "hypercache.bytes" $limits.memory | int64) (int64 .Values.cluster.memoryShare)) 100 -}}
{{- if lt $items 16777216 -}}
{{- fail (printf "cluster.memoryShare=%d of resources.limits.memory=%v is less than the 16Mi that items take at least: raise one of them" (int64 .Values.cluster.memoryShare) (include "hypercache.plain" $limits.memory)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "hypercache.validateDisruptions" -}}
{{- $budget := .Values.podDisruptionBudget -}}
{{- $pods := int64 .Values.replicaCount -}}
{{- if $budget.enabled -}}
{{- if and (not (kindIs "invalid" $budget.minAvailable)) (not (kindIs "invalid" $budget.maxUnavailable)) -}}
{{- fail "podDisruptionBudget has minAvailable and maxUnavailable: set one of them" -}}
{{- end -}}
{{- if not (kindIs "invalid" $budget.minAvailable) -}}
{{- if ge (include "hypercache.podsOf" (dict "value" $budget.minAvailable "pods" $pods) | int64) $pods -}}
{{- fail (printf "podDisruptionBudget.minAvailable=%v of %d pods would block every eviction, and no machine could be drained: set at most %d, or leave it out for that" (include "hypercache.plain" $budget.minAvailable) $pods (sub $pods 1)) -}}
{{- end -}}
{{- end -}}
{{- if not (kindIs "invalid" $budget.maxUnavailable) -}}
{{- if lt (include "hypercache.podsOf" (dict "value" $budget.maxUnavailable "pods" $pods) | int64) 1 -}}
{{- fail (printf "podDisruptionBudget.maxUnavailable=%v would block every eviction, and no machine could be drained: set at least 1" (include "hypercache.plain" $budget.maxUnavailable)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "hypercache.validateTermination" -}}
{{- if lt (include "hypercache.shutdownSeconds" . | int64) 5 -}}
{{- fail (printf "terminationGracePeriodSeconds=%d leaves a node no time to hand over its data: set at least %d (preStopSleepSeconds, 10 to spare and 5), better 45" (int64 .Values.terminationGracePeriodSeconds) (add (int64 .Values.preStopSleepSeconds) 15)) -}}
{{- end -}}
{{- end }}

{{- define "hypercache.validateCredentials" -}}
{{- $token := .Values.auth.token -}}
{{- $value := default "" $token.value | trim -}}
{{- if regexMatch "[^!-~\r\n]" $value -}}
{{- fail "auth.token.value has characters that no header can carry: set visible ASCII characters without spaces, for example by $(openssl rand -base64 32)" -}}
{{- end -}}
{{- if and (eq $token.from "environment") (regexMatch "[\r\n]" $value) -}}
{{- fail "auth.token.value has several tokens, and a variable holds one: set auth.token.from=file" -}}
{{- end -}}
{{- $oidc := .Values.auth.oidc -}}
{{- if ne (empty $oidc.issuer) (empty $oidc.audience) -}}
{{- fail "auth.oidc.issuer and auth.oidc.audience go together: set both or neither" -}}
{{- end -}}
{{- $asked := or $token.value $token.existingSecret $oidc.issuer .Values.auth.policy.existingSecret -}}
{{- $known := or $token.value $token.existingSecret .Values.auth.peerToken.existingSecret .Values.tls.peer.existingSecret -}}
{{- if and $asked (not $known) -}}
{{- fail "clients are asked who they are and peers could do everything: set auth.peerToken.existingSecret, auth.token or tls.peer.existingSecret" -}}
{{- end -}}
{{- end }}

{{- define "hypercache.validateServices" -}}
{{- range $service := list "client" "mgmt" -}}
{{- $values := get $.Values.service $service -}}
{{- range $name := list "nodePort" "externalTrafficPolicy" -}}
{{- if and (get $values $name) (eq $values.type "ClusterIP") -}}
{{- fail (printf "service.%s.%s needs service.%s.type=LoadBalancer or NodePort" $service $name $service) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "loadBalancerClass" "loadBalancerSourceRanges" -}}
{{- if and (get $values $name) (ne $values.type "LoadBalancer") -}}
{{- fail (printf "service.%s.%s needs service.%s.type=LoadBalancer" $service $name $service) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled -}}
{{- fail "serviceMonitor.enabled and podMonitor.enabled would have every pod scraped twice: set one of them" -}}
{{- end -}}
{{- $ports := list (int .Values.ports.api) (int .Values.ports.mgmt) (int .Values.ports.dist) -}}
{{- if ne (len (uniq $ports)) 3 -}}
{{- fail (printf "ports.api=%v, ports.mgmt=%v, ports.dist=%v: a pod listens on three ports, set three" (index $ports 0) (index $ports 1) (index $ports 2)) -}}
{{- end -}}
{{- end }}
