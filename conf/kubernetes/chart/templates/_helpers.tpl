{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- define "untracked.labels" -}}
app.kubernetes.io/name: untracked
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The flags that install and its check have in common. */ -}}
{{- define "untracked.installFlags" -}}
- --config=/etc/untracked
- --bin-dir=$(CNI_BIN_DIR)
- --conf-dir=$(CNI_CONF_DIR)
- --state-dir={{ .Values.stateDir }}
{{- if .Values.dropIn }}
- --drop-in
{{- end }}
{{- end }}

{{- define "untracked.image" -}}
image: {{ printf "%s:%s" .Values.image.repository .Values.image.tag | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}
