// Command kube is every server of a Kubernetes control plane and node, and etcd, in one program. It looks at the name it
// was started under, or at its first argument, and becomes that server. One program instead of six shares one build and
// 600 MB of disk.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func serve(build func() *cobra.Command) func([]string) {
	return func(args []string) {
		command := build()
		command.SetArgs(args[1:])
		os.Exit(cli.Run(command))
	}
}

var servers = map[string]func(args []string){
	"etcd":                    func(args []string) { etcdmain.Main(args) },
	"kube-apiserver":          serve(apiserver.NewAPIServerCommand),
	"kube-controller-manager": serve(controllers.NewControllerManagerCommand),
	"kube-scheduler":          serve(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubelet":                 serve(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"kube-proxy":              serve(proxy.NewProxyCommand),
	"provisioner":             provision,
	"stop-pods":               stopPods,
}

func main() {
	args := append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...)
	if _, known := servers[args[0]]; !known {
		args = args[1:]
	}
	if len(args) > 0 {
		if server, known := servers[args[0]]; known {
			// cobra and etcd both read os.Args in places, so it must look as if the server had been started alone.
			os.Args = args
			server(args)
			return
		}
	}
	names := make([]string, 0, len(servers))
	for name := range servers {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Fprintln(os.Stderr, "usage: kube SERVER [FLAGS]; SERVER is one of: "+strings.Join(names, ", "))
	os.Exit(2)
}
