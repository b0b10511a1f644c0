// Would a SPIFFE library take this certificate? With go-spiffe.
//
//	verify CERT.pem CA.pem BROKER_URL SPIFFE-ID
//
// CERT.pem is the caller's certificate first, then what is between it and its root; CA.pem are the roots
// of your trust domain, with which its bundle is fetched from BROKER_URL/bundle.
//
// go-spiffe checks the chain, the SPIFFE profile and the time. It asks no revocation list: do that as
// verify.go beside this folder, in tls.Config.VerifyConnection.
//
// Exit: 0 taken, 1 refused, 2 usage.
package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: verify CERT.pem CA.pem BROKER_URL SPIFFE-ID")
		os.Exit(2)
	}
	err := check(os.Args[1], os.Args[2], os.Args[3], os.Args[4])
	if err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	fmt.Printf("taken: %s\n", os.Args[4])
}

func check(certFile, caFile, broker, expected string) error {
	want, err := spiffeid.FromString(expected)
	if err != nil {
		return err
	}
	chain, err := os.ReadFile(certFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	if !roots.AppendCertsFromPEM(ca) {
		return errors.New(caFile + ": no certificate")
	}
	patience, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	// The bundle says whom to trust: never fetch it without checking who sends it.
	bundle, err := federation.FetchBundle(patience, want.TrustDomain(), broker+"/bundle", federation.WithWebPKIRoots(roots))
	if err != nil {
		return err
	}
	id, _, err := x509svid.ParseAndVerify(ders(chain), bundle)
	if err != nil {
		return err
	}
	if id != want {
		return fmt.Errorf("it is for %s, not for %s", id, want)
	}
	return nil
}

func ders(chain []byte) [][]byte {
	var found [][]byte
	for {
		var block *pem.Block
		block, chain = pem.Decode(chain)
		if block == nil {
			return found
		}
		found = append(found, block.Bytes)
	}
}
