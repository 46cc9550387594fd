#!/usr/bin/env bash
# Trains over HTTP with curl: upload images, submit a job, follow its events, download the result.
#   API=http://127.0.0.1:8080/v1 KEY=twk_... bash examples/curl_session.sh job.json images results
# job.json is a job whose dataset is {"type": "ARCHIVE", "archive": "upload:ID"}; ID is replaced.
# Needs curl, tar, sed, and python3 to format JSON.
set -euo pipefail
job=$1 images=$2 results=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

call() { curl --silent --show-error --fail-with-body -H "Authorization: Bearer $KEY" "$@"; }
# Prints a string of a JSON document's top level.
field() { python3 -m json.tool | sed -n "s/^    \"$1\": \"\(.*\)\",*\$/\1/p"; }

# 1. Upload the images by the tus protocol. An interrupted upload resumes at the offset that HEAD returns.
tar -czf "$work/images.tar.gz" -C "$images" .
upload=$(call -i -X POST "$API/uploads" -H 'Tus-Resumable: 1.0.0' \
  -H "Upload-Length: $(wc -c < "$work/images.tar.gz" | tr -d ' ')" \
  | tr -d '\r' | sed -n 's|^[Ll]ocation: .*/||p')
call -X PATCH "$API/uploads/$upload" -H 'Tus-Resumable: 1.0.0' -H 'Upload-Offset: 0' \
  -H 'Content-Type: application/offset+octet-stream' --data-binary "@$work/images.tar.gz"

# 2. Check the job without submitting it: problems, memory class, expected time.
sed "s/upload:ID/upload:$upload/" "$job" > "$work/job.json"
call -X POST -H 'Content-Type: application/json' --data "@$work/job.json" "$API/jobs:preview" \
  > "$work/preview.json"
python3 -m json.tool < "$work/preview.json"

# 3. Submit it. The Idempotency-Key makes a repeated request the same job.
call -X POST -H 'Content-Type: application/json' -H "Idempotency-Key: $upload" \
  --data "@$work/job.json" "$API/jobs" > "$work/submitted.json"
id=$(field id < "$work/submitted.json")
echo "job $id"

# 4. Follow its events until the job ends.
call -N "$API/jobs/$id/events" | sed -n 's/^data: //p' | tee "$work/events.jsonl"
status=$(tail -n 1 "$work/events.jsonl" | field status)
echo "status: $status"
[ "$status" = succeeded ]

# 5. Download the published files.
mkdir -p "$results"
call "$API/jobs/$id/files" | python3 -m json.tool > "$work/files.json"
for name in $(sed -n '/^    "files"/,/^    \]/s/^ *"name": "\(.*\)",*$/\1/p' "$work/files.json"); do
  mkdir -p "$results/$(dirname "$name")"
  call -o "$results/$name" "$API/jobs/$id/files/$name"
  echo "downloaded: $results/$name"
done
