{{- define "finetune.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "finetune.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "finetune.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "finetune.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "finetune.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "finetune.selectorLabels" -}}
app.kubernetes.io/name: {{ include "finetune.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "finetune.labels" -}}
{{ include "finetune.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: finetune-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image's full name. Takes (list root image). */}}
{{- define "finetune.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := default $root.Values.global.imageRegistry $image.registry -}}
{{- if $registry -}}{{ trimSuffix "/" $registry }}/{{- end -}}
{{- $image.repository -}}
{{- if $image.digest -}}@{{ $image.digest }}{{- else -}}:{{ default $root.Chart.AppVersion $image.tag }}{{- end -}}
{{- end -}}

{{/* What the operator may do in a namespace that it serves. */}}
{{- define "finetune.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
# Where OwnerReferencesPermissionEnforcement is on, children may name the job as their owner only with this.
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# Whether a claim can be mounted on several nodes.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
# Listed to find out why a pod cannot be created or cannot mount.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, list]
{{- end -}}

{{/* trainer.image, trainer.defaults and jobs.ttlSecondsAfterFinished as one JSON object; trainer.defaults wins over trainer.image. */}}
{{- define "finetune.defaults" -}}
{{- $pods := dict "image" (include "finetune.image" (list . .Values.trainer.image)) "imagePullPolicy" .Values.trainer.image.pullPolicy -}}
{{- $defaults := .Values.trainer.defaults -}}
{{- $platform := pick $defaults "gpuHourPrice" "gpuType" "maxPodMemory" -}}
{{- $all := merge (dict "pods" (merge (deepCopy (omit $defaults "gpuHourPrice" "gpuType" "maxPodMemory")) $pods)) $platform -}}
{{- if not (kindIs "invalid" .Values.jobs.ttlSecondsAfterFinished) -}}
{{- $_ := set $all "ttlSecondsAfterFinished" (int64 .Values.jobs.ttlSecondsAfterFinished) -}}
{{- end -}}
{{- $all | toJson -}}
{{- end -}}
