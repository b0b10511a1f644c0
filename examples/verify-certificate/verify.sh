#!/usr/bin/env bash
# Would a service take this certificate now? With openssl and curl alone.
#
#     verify.sh CERT.pem CA.pem SPIFFE-ID
#
# CERT.pem  the caller's certificate first, then what is between it and its root
# CA.pem    the roots of your trust domain
#
# Exit: 0 taken, 1 refused (the reason is openssl's own), 2 usage.
set -euo pipefail
[ $# = 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
cert=$1 ca=$2 expected=$3
refuse() { printf 'refused: %s\n' "$*" >&2; exit 1; }
verify() { # OPTIONS
    openssl verify -purpose sslclient -CAfile "$ca" -untrusted "$cert" "$@" "$cert" 2>&1 | sed '/^$/d'
}

# The chain first: only then is the list's address one that a CA of ours wrote.
said=$(verify) || refuse "$said"

names=$(openssl x509 -in "$cert" -noout -ext subjectAltName | sed -n 's/^ *//; 2s/, /\n/gp; 2p' | grep '^URI:' | sort -u)
[ "$names" = "URI:$expected" ] || refuse "it is for ${names#URI:}, not for $expected"

url=$(openssl x509 -in "$cert" -noout -ext crlDistributionPoints | sed -n 's/^ *URI://p')
[ -n "$url" ] || refuse "it names no revocation list"
list=$(mktemp)
trap 'rm -f "$list"' EXIT
curl --silent --show-error --fail --proto =http,https --max-time 5 --max-filesize 4194304 "$url" |
    openssl crl -inform DER -out "$list" || refuse "its revocation list cannot be had from $url"

# Not -crl_check_all: that asks for a list that covers the root, which this one does not.
said=$(verify -crl_check -CRLfile "$list") || refuse "$said"
printf 'taken: %s, not on %s\n' "$expected" "$url"
