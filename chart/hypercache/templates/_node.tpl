{{/*
How a node is set up: its environment, the files it reads and how it is probed. Every variable
that stands here is one of `hypercache --help`; tests have the binary check them.
*/}}

{{/* What a node has to hand over its data and end: the rest of the grace period. */}}
{{- define "hypercache.shutdownSeconds" -}}
{{ sub (int64 .Values.terminationGracePeriodSeconds) (add (int64 .Values.preStopSleepSeconds) 10) }}
{{- end }}

{{/*
The same list for every pod, of the first pods only: what it says does not depend on how many
there are besides, and a change of replicaCount beyond them restarts nobody.
*/}}
{{- define "hypercache.seeds" -}}
{{- $seeds := list -}}
{{- range $ordinal := until (int (min .Values.replicaCount .Values.cluster.seedPods)) -}}
{{- $pod := printf "%s-%d" (include "hypercache.fullname" $) $ordinal -}}
{{- $seeds = append $seeds (printf "%s@%s.%s:%d" $pod $pod (include "hypercache.podDomain" $) (int $.Values.ports.dist)) -}}
{{- end -}}
{{ join "," $seeds }}
{{- end }}

{{/*
Where the bearer token is, as a dict of `secret`, `key`, and `single`, whose value is one token;
empty without one.
*/}}
{{- define "hypercache.token" -}}
{{- $token := .Values.auth.token -}}
{{- if $token.existingSecret -}}
{{- $single := default $token.existingSecretKey $token.existingSecretScrapeKey -}}
{{ dict "secret" $token.existingSecret "key" $token.existingSecretKey "single" $single | toYaml }}
{{- else if $token.value -}}
{{ dict "secret" (printf "%s-auth" (include "hypercache.fullname" .)) "key" "token" "single" "single" | toYaml }}
{{- end }}
{{- end }}

{{/*
The Secrets that a node reads as files, as a list of `name`, `secret` and `files`, each of these with
its `path`, the Secret's `key` and the node's `variable`. Mounted at /etc/hypercache/<name>.
*/}}
{{- define "hypercache.mounts" -}}
{{- $mounts := list -}}
{{- with include "hypercache.token" . | fromYaml -}}
{{- if and .secret (eq $.Values.auth.token.from "file") -}}
{{- $files := list (dict "path" "token" "key" .key "variable" "HYPERCACHE_AUTH_TOKEN_FILE") -}}
{{- $mounts = append $mounts (dict "name" "token" "secret" .secret "files" $files) -}}
{{- end -}}
{{- end -}}
{{- with .Values.auth.peerToken -}}
{{- if .existingSecret -}}
{{- $files := list (dict "path" "token" "key" .existingSecretKey "variable" "HYPERCACHE_PEER_TOKEN_FILE") -}}
{{- $mounts = append $mounts (dict "name" "peer-token" "secret" .existingSecret "files" $files) -}}
{{- end -}}
{{- end -}}
{{- with .Values.auth.policy -}}
{{- if .existingSecret -}}
{{- $files := list (dict "path" "policy.yaml" "key" .existingSecretKey "variable" "HYPERCACHE_AUTH_CONFIG") -}}
{{- $mounts = append $mounts (dict "name" "policy" "secret" .existingSecret "files" $files) -}}
{{- end -}}
{{- end -}}
{{- $prefixes := dict "client" "HYPERCACHE_API_TLS" "mgmt" "HYPERCACHE_MGMT_TLS" "peer" "HYPERCACHE_PEER_TLS" -}}
{{- range $name, $prefix := $prefixes -}}
{{- with get $.Values.tls $name -}}
{{- if .existingSecret -}}
{{- $files := list (dict "path" "tls.crt" "key" .certKey "variable" (printf "%s_CERT" $prefix)) (dict "path" "tls.key" "key" .keyKey "variable" (printf "%s_KEY" $prefix)) -}}
{{- if .caKey -}}
{{- $authority := ternary "CA" "CLIENT_CA" (eq $name "peer") -}}
{{- $files = append $files (dict "path" "ca.crt" "key" .caKey "variable" (printf "%s_%s" $prefix $authority)) -}}
{{- end -}}
{{- $mounts = append $mounts (dict "name" (printf "tls-%s" $name) "secret" .existingSecret "files" $files) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ toYaml $mounts }}
{{- end }}

{{/* Whether clients must show a certificate: "yes", or empty. */}}
{{- define "hypercache.clientsShowCertificates" -}}
{{- with .Values.tls.client -}}
{{- if and .existingSecret .caKey (eq .clientAuth "require") }}yes{{ end -}}
{{- end -}}
{{- end }}

{{- define "hypercache.environment" -}}
- name: HYPERCACHE_NODE_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- $set := dict -}}
{{- $set = set $set "HYPERCACHE_API_ADDR" (printf ":%d" (int .Values.ports.api)) -}}
{{- $set = set $set "HYPERCACHE_MGMT_ADDR" (printf ":%d" (int .Values.ports.mgmt)) -}}
{{- $set = set $set "HYPERCACHE_DIST_ADDR" (printf "$(HYPERCACHE_NODE_ID).%s:%d" (include "hypercache.podDomain" .) (int .Values.ports.dist)) -}}
{{- $set = set $set "HYPERCACHE_SEEDS" (include "hypercache.seeds" .) -}}
{{- with .Values.cluster -}}
{{- $set = set $set "HYPERCACHE_REPLICATION" .replicationFactor -}}
{{- $set = set $set "HYPERCACHE_CAPACITY" .capacity -}}
{{- $set = set $set "HYPERCACHE_HEARTBEAT" .heartbeat -}}
{{- $set = set $set "HYPERCACHE_INDIRECT_PROBE_K" .indirectProbeK -}}
{{- $set = set $set "HYPERCACHE_HINT_TTL" .hintTTL -}}
{{- $set = set $set "HYPERCACHE_HINT_REPLAY" .hintReplay -}}
{{- $set = set $set "HYPERCACHE_REBALANCE_INTERVAL" .rebalanceInterval -}}
{{- $set = set $set "HYPERCACHE_LOG_LEVEL" .logLevel -}}
{{- end -}}
{{- $set = set $set "HYPERCACHE_SHUTDOWN_TIMEOUT" (printf "%ss" (include "hypercache.shutdownSeconds" .)) -}}
{{- if .Values.cpuPinning.requireExclusive -}}
{{- $set = set $set "HYPERCACHE_REQUIRE_EXCLUSIVE_CPUS" "true" -}}
{{- end -}}
{{- if .Values.ioUring.enabled -}}
{{- $set = set $set "HYPERCACHE_IO_DRIVER" "io_uring" -}}
{{- end -}}
{{- with .Values.auth.oidc -}}
{{- if .issuer -}}
{{- $set = set $set "HYPERCACHE_OIDC_ISSUER" .issuer -}}
{{- $set = set $set "HYPERCACHE_OIDC_AUDIENCE" .audience -}}
{{- $set = set $set "HYPERCACHE_OIDC_IDENTITY_CLAIM" .identityClaim -}}
{{- $set = set $set "HYPERCACHE_OIDC_SCOPE_CLAIM" .scopeClaim -}}
{{- end -}}
{{- end -}}
{{- range $mount := include "hypercache.mounts" . | fromYamlArray -}}
{{- range $mount.files -}}
{{- $set = set $set .variable (printf "/etc/hypercache/%s/%s" $mount.name .path) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.client.existingSecret .Values.tls.client.caKey -}}
{{- $set = set $set "HYPERCACHE_API_TLS_CLIENT_AUTH" .Values.tls.client.clientAuth -}}
{{- end -}}
{{- if .Values.tls.peer.existingSecret -}}
{{- $set = set $set "HYPERCACHE_PEER_TLS_MODE" .Values.tls.peer.mode -}}
{{- if .Values.tls.peer.serverName -}}
{{- $set = set $set "HYPERCACHE_PEER_TLS_SERVER_NAME" .Values.tls.peer.serverName -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- $set = set $set $name $value -}}
{{- end -}}
{{- range $name, $value := $set }}
- name: {{ $name }}
  value: {{ include "hypercache.plain" $value | quote }}
{{- end }}
{{- $limits := .Values.resources.limits }}
{{- if $limits.cpu }}
- name: HYPERCACHE_CPU_LIMIT
  valueFrom:
    resourceFieldRef:
      resource: limits.cpu
{{- end }}
{{- if $limits.memory }}
- name: CONTAINER_MEMORY
  valueFrom:
    resourceFieldRef:
      resource: limits.memory
- name: HYPERCACHE_MEMORY_LIMIT
  value: "{{ .Values.cluster.memoryShare }}% of $(CONTAINER_MEMORY)"
{{- else }}
- name: HYPERCACHE_MEMORY_LIMIT
  value: "{{ .Values.cluster.memoryShare }}%"
{{- end }}
{{- with include "hypercache.token" . | fromYaml }}
{{- if and .secret (eq $.Values.auth.token.from "environment") }}
- name: HYPERCACHE_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.otlp.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: KUBERNETES_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: OTEL_RESOURCE_ATTRIBUTES
  value: "k8s.namespace.name={{ $.Release.Namespace }},k8s.statefulset.name={{ include "hypercache.fullname" $ }},k8s.pod.name=$(HYPERCACHE_NODE_ID),k8s.node.name=$(KUBERNETES_NODE_NAME)"
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Probes show neither credentials nor certificates. Where the client port or the peer port insists
on a certificate, the management port is asked instead: it asks for one, and takes none.
*/}}
{{- define "hypercache.liveProbe" -}}
{{- $insists := eq (include "hypercache.clientsShowCertificates" .) "yes" -}}
{{- $asked := ternary .Values.tls.mgmt .Values.tls.client $insists -}}
httpGet:
  path: /healthz
  port: {{ ternary "mgmt" "api" $insists }}
  scheme: {{ ternary "HTTP" "HTTPS" (empty $asked.existingSecret) }}
{{- end }}

{{- define "hypercache.readyProbe" -}}
{{- $peer := .Values.tls.peer -}}
{{- $insists := and (not (empty $peer.existingSecret)) (eq $peer.mode "require") -}}
httpGet:
  path: /health
  port: {{ ternary "mgmt" "dist" $insists }}
  scheme: {{ ternary "HTTPS" "HTTP" (and $insists (not (empty .Values.tls.mgmt.existingSecret))) }}
{{- end }}
