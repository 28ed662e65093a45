package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisionerName = "finetune.dev/local"

// folders gives every claim a folder of its own under root. The hostPath provisioner inside the controller manager makes
// folders of mode 0750 that belong to root, which pods with a fixed uid cannot write to; these have mode 0777.
type folders struct{ root string }

func (f folders) Provision(_ context.Context, options controller.ProvisionOptions) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	folder := filepath.Join(f.root, fmt.Sprintf("%s_%s_%s", options.PVC.Namespace, options.PVC.Name, options.PVName))
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	// A second call, since mkdir's mode goes through the umask.
	if err := os.Chmod(folder, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	directory := v1.HostPathDirectory
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   options.PVC.Spec.AccessModes,
			VolumeMode:                    options.PVC.Spec.VolumeMode,
			MountOptions:                  options.StorageClass.MountOptions,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: options.PVC.Spec.Resources.Requests[v1.ResourceStorage]},
			PersistentVolumeSource: v1.PersistentVolumeSource{
				HostPath: &v1.HostPathVolumeSource{Path: folder, Type: &directory},
			},
		},
	}, controller.ProvisioningFinished, nil
}

// Delete removes the folder, and nothing that does not lie directly under root, whatever the volume says.
func (f folders) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	if volume.Spec.HostPath == nil {
		return &controller.IgnoredError{Reason: "not a hostPath volume"}
	}
	folder := filepath.Clean(volume.Spec.HostPath.Path)
	if filepath.Dir(folder) != filepath.Clean(f.root) {
		return &controller.IgnoredError{Reason: "not a folder of this provisioner: " + folder}
	}
	return os.RemoveAll(folder)
}

func provision(args []string) {
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "how to reach the API server")
	root := flags.String("root", "", "folder that holds the volumes")
	_ = flags.Parse(args[1:])
	if err := runProvisioner(*kubeconfig, *root); err != nil {
		klog.Error(err)
		os.Exit(1)
	}
}

func runProvisioner(kubeconfig, root string) error {
	if root == "" {
		return errors.New("--root is missing")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	provisioner := controller.NewProvisionController(ctx, client, provisionerName, folders{root: root},
		controller.LeaderElection(false), controller.MetricsPort(0))
	provisioner.Run(ctx)
	return nil
}
