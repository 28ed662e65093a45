package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
)

// stopPods ends every pod of a container run-time through its own interface, so that network namespaces, addresses and
// mounts go the way they came. It runs when no kubelet does.
func stopPods(args []string) {
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	endpoint := flags.String("endpoint", "", "the run-time's socket, unix://...")
	timeout := flags.Duration("timeout", 30*time.Second, "how long one call may take")
	_ = flags.Parse(args[1:])
	ctx := context.Background()
	runtime, err := criclient.NewRemoteRuntimeService(ctx, *endpoint, *timeout, noop.NewTracerProvider(), false)
	if err != nil {
		fail(err)
	}
	sandboxes, err := runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{})
	if err != nil {
		fail(err)
	}
	var group sync.WaitGroup
	failures := make(chan error, len(sandboxes))
	for _, sandbox := range sandboxes {
		group.Add(1)
		go func() {
			defer group.Done()
			if err := runtime.StopPodSandbox(ctx, sandbox.Id); err != nil {
				failures <- err
				return
			}
			if err := runtime.RemovePodSandbox(ctx, sandbox.Id); err != nil {
				failures <- err
			}
		}()
	}
	group.Wait()
	close(failures)
	if err, failed := <-failures; failed {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
