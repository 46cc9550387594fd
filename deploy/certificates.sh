#!/usr/bin/env bash
# Creates a CA for the fleet and the broker's certificate. Existing files are kept.
#   bash deploy/certificates.sh [FOLDER] NAME...
# NAMEs are the broker's host names or IP addresses. FOLDER (deploy/secrets) then holds ca.crt,
# broker.crt, broker.key and ca.key. Do not copy ca.key to other machines.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/secrets}
shift || true
names=${*:-valkey localhost}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

alternatives=
for name in $names; do
  [[ $name =~ ^[0-9.]+$|: ]] && kind=IP || kind=DNS
  alternatives+=,$kind:$name
done
quiet() { openssl "$@" 2>/dev/null || { echo "openssl $1 failed" >&2; return 1; }; }
if [ ! -e ca.crt ]; then
  quiet req -x509 -newkey rsa:3072 -nodes -keyout ca.key -out ca.crt -days 3650 \
    -subj "/CN=training-worker CA" -addext keyUsage=critical,keyCertSign,cRLSign
fi
if [ ! -e broker.crt ]; then
  quiet req -newkey rsa:3072 -nodes -keyout broker.key -out broker.csr -subj "/CN=${names%% *}"
  printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "${alternatives#,}" > broker.ext
  quiet x509 -req -in broker.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 \
    -extfile broker.ext -out broker.crt
  rm broker.csr broker.ext
fi
chmod 444 ca.crt broker.crt broker.key
chmod 400 ca.key
