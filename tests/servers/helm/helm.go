//go:build tools

// Package helm pins the release of helm that the chart is tested with.
package helm

import _ "helm.sh/helm/v3/cmd/helm"
