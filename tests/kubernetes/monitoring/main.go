// Command decode-monitoring reads a stream of manifests and decodes each object of the Prometheus
// Operator as the operator's own type, refusing every field that type does not have. It prints the
// kind and name of each, and nothing of other objects.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	manifests "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// What an object of this kind is decoded into.
func typed(kind string) (metav1.Object, error) {
	switch kind {
	case monitoring.ServiceMonitorsKind:
		return &monitoring.ServiceMonitor{}, nil
	case monitoring.PodMonitorsKind:
		return &monitoring.PodMonitor{}, nil
	case monitoring.PrometheusRuleKind:
		return &monitoring.PrometheusRule{}, nil
	}
	return nil, fmt.Errorf("no type is known for %s", kind)
}

func decode(manifest []byte) error {
	var said metav1.TypeMeta
	if err := yaml.Unmarshal(manifest, &said); err != nil {
		return err
	}
	if said.GroupVersionKind().Group != monitoring.SchemeGroupVersion.Group {
		return nil
	}
	if said.APIVersion != monitoring.SchemeGroupVersion.String() {
		return fmt.Errorf("%s is of %s, not of %s", said.Kind, said.APIVersion, monitoring.SchemeGroupVersion)
	}
	object, err := typed(said.Kind)
	if err != nil {
		return err
	}
	if err := yaml.UnmarshalStrict(manifest, object); err != nil {
		return fmt.Errorf("%s: %w", said.Kind, err)
	}
	fmt.Printf("%s %s\n", said.Kind, object.GetName())
	return nil
}

func run(stream io.Reader) error {
	reader := manifests.NewYAMLReader(bufio.NewReader(stream))
	for {
		manifest, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = decode(manifest)
		}
		if err != nil {
			return err
		}
	}
}

func main() {
	if err := run(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
