#!/bin/sh
# Writes the bill of materials of a built image: bill.sh BUILDER IMAGE PYTHON FILE, where PYTHON has
# CycloneDX. The image itself need not be able to run here.
set -eu
builder=$1 image=$2 python=$3 file=$4
folder=$(mktemp -d)
case $builder in
buildah*)
    # shellcheck disable=SC2086
    container=$($builder from "$image")
    trap '$builder rm "$container" >/dev/null; rm -rf "$folder"' EXIT
    root=$($builder mount "$container")
    ;;
*)
    # shellcheck disable=SC2086
    container=$($builder create "$image")
    trap '$builder rm "$container" >/dev/null; rm -rf "$folder"' EXIT
    $builder export "$container" | tar -x -C "$folder" opt/onnx-audit/lib var/lib/dpkg/status
    root=$folder
    ;;
esac
mkdir -p "$(dirname "$file")"
"$python" "$(dirname "$0")/../sbom.py" --dpkg "$root/var/lib/dpkg/status" \
    --site "$(echo "$root"/opt/onnx-audit/lib/python3*/site-packages)" --output "$file"
