// Would a service take this certificate now? With Go's standard library alone (1.19 or newer).
//
//	go run verify.go CERT.pem CA.pem SPIFFE-ID
//
// CERT.pem is the caller's certificate first, then what is between it and its root; CA.pem are the roots
// of your trust domain. In a TLS server call check in tls.Config.VerifyConnection with the peer's
// certificates, and keep each list for some seconds.
//
// Exit: 0 taken, 1 refused, 2 usage.
package main

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const listBytesMax = 4 << 20

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: verify CERT.pem CA.pem SPIFFE-ID")
		os.Exit(2)
	}
	err := run(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	fmt.Printf("taken: %s\n", os.Args[3])
}

func run(certFile, caFile, id string) error {
	chain, err := read(certFile)
	if err != nil {
		return err
	}
	roots, err := read(caFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	return check(chain, pool, id)
}

// check accepts a chain, leaf first, that ends at a root, is for this SPIFFE ID, and is not revoked.
func check(chain []*x509.Certificate, roots *x509.CertPool, id string) error {
	leaf := chain[0]
	between := x509.NewCertPool()
	for _, one := range chain[1:] {
		between.AddCert(one)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return err
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
		return fmt.Errorf("it is for %v, not for %s", leaf.URIs, id)
	}
	return checkRevocation(leaf, chains[0][1])
}

// checkRevocation fetches the list that the certificate names. Whatever goes wrong refuses.
func checkRevocation(leaf, issuer *x509.Certificate) error {
	if len(leaf.CRLDistributionPoints) != 1 {
		return errors.New("it does not name one revocation list")
	}
	url := leaf.CRLDistributionPoints[0]
	list, err := fetch(url)
	if err != nil {
		return fmt.Errorf("its revocation list: %w", err)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("its revocation list: %w", err)
	}
	now := time.Now()
	if now.Before(list.ThisUpdate) || now.After(list.NextUpdate) {
		return fmt.Errorf("its revocation list is for %s to %s", list.ThisUpdate, list.NextUpdate)
	}
	// One CA signs several lists: another one says nothing about this certificate.
	if !isFor(list, url) {
		return fmt.Errorf("what came from %s is another revocation list", url)
	}
	for _, entry := range list.RevokedCertificates { // from Go 1.21 on: RevokedCertificateEntries
		if entry.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return fmt.Errorf("revoked at %s (serial %x, list %s)", entry.RevocationTime, leaf.SerialNumber, list.Number)
		}
	}
	return nil
}

func fetch(url string) (*x509.RevocationList, error) {
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, answer.Status)
	}
	der, err := io.ReadAll(io.LimitReader(answer.Body, listBytesMax))
	if err != nil {
		return nil, err
	}
	return x509.ParseRevocationList(der)
}

// issuingDistributionPoint is what a list says of its own scope (RFC 5280 section 5.2.5).
type issuingDistributionPoint struct {
	DistributionPoint struct {
		FullName []asn1.RawValue `asn1:"optional,tag:0"`
	} `asn1:"optional,tag:0"`
	OnlyContainsUserCerts bool `asn1:"optional,tag:1"`
}

// isFor says whether the list speaks for the certificates that name this address. A scope that is
// narrower than that, or an extension that is critical and unknown here, makes it no.
func isFor(list *x509.RevocationList, url string) bool {
	found := false
	for _, extension := range list.Extensions {
		if !extension.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 28}) {
			if extension.Critical {
				return false
			}
			continue
		}
		var point issuingDistributionPoint
		rest, err := asn1.Unmarshal(extension.Value, &point)
		if err != nil || len(rest) > 0 {
			return false
		}
		for _, name := range point.DistributionPoint.FullName {
			found = found || name.Tag == 6 && string(name.Bytes) == url
		}
	}
	return found
}

func read(file string) ([]*x509.Certificate, error) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var found []*x509.Certificate
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		found = append(found, one)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: no certificate", file)
	}
	return found, nil
}
