// Versions that build with the Go of Debian 12 (1.19). With a newer one, take newer.
module ephor.example/verify-certificate

go 1.19

require github.com/spiffe/go-spiffe/v2 v2.1.7

require (
	github.com/go-jose/go-jose/v3 v3.0.4 // indirect
	github.com/zeebo/errs v1.3.0 // indirect
	golang.org/x/crypto v0.19.0 // indirect
)
