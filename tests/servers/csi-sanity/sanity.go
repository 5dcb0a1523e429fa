// Names csi-sanity, so that this module's lock covers what it is built of.
package sanity

import _ "github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
