// The program of the sandbox image: it holds a pod's namespaces open.
module finetune.dev/localcluster/pause

go 1.23
