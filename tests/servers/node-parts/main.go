// Command parts is what a node needs beside its programs, in images of their own: the process that keeps a pod's namespaces, and
// the one that tells the kubelet of a CSI plugin. Its first argument says which it is; without one it is the first.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// pause ends with SIGTERM, and takes care of orphans of a pod that shares its processes.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for got := range signals {
		if got != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// registrar answers the kubelet, which looks at sockets in its plugins_registry.
type registrar struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: r.name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Fatalf("the kubelet does not take it: %s", status.Error)
	}
	log.Print("registered")
	return &registration.RegistrationStatusResponse{}, nil
}

func register(arguments []string) {
	flags := flag.NewFlagSet("registrar", flag.ExitOnError)
	flags.String("csi-address", "", "the plugin's socket, here; its name is that of its directory on the node")
	endpoint := flags.String("kubelet-registration-path", "", "the plugin's socket, on the node")
	_ = flags.Parse(arguments)
	name := filepath.Base(filepath.Dir(*endpoint))
	place := filepath.Join("/registration", name+"-reg.sock")
	_ = os.Remove(place)
	listener, err := net.Listen("unix", place)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{name: name, endpoint: *endpoint})
	go func() {
		pause()
		server.Stop()
		_ = os.Remove(place)
	}()
	log.Fatal(server.Serve(listener))
}

func main() {
	if len(os.Args) > 1 {
		register(os.Args[1:])
	}
	pause()
}
