#!/bin/sh
# Lets a model pass or not, in any build service. Exit status: 0 pass, 1 blocked, 2 undecided or
# wrong usage, 3 the service or the audit failed. Set:
#
#   ONNX_AUDIT_MODEL     the ONNX file
#   ONNX_AUDIT_PROBES    .npz, .safetensors, or a folder of images
#   ONNX_AUDIT_POLICY    YAML file or ready-made policy             [baseline]
#   ONNX_AUDIT_BASELINE  report, audit or model to compare with     [none]
#   ONNX_AUDIT_FORMATS   documents to write                         [html,markdown,sarif,junit]
#   ONNX_AUDIT_OUT       their folder                               [onnx-audit-report]
#   ONNX_AUDIT_OPTIONS   further options, such as "--box 0,1 --norms l2,linf"; split at white space
#   ONNX_AUDIT_SERVER    host:port of a service                     [one is started for the command]
set -eu

model=${ONNX_AUDIT_MODEL:?"set ONNX_AUDIT_MODEL to the ONNX file"}
probes=${ONNX_AUDIT_PROBES:?"set ONNX_AUDIT_PROBES to the inputs to audit on"}

set -- --policy "${ONNX_AUDIT_POLICY:-baseline}" \
    --out "${ONNX_AUDIT_OUT:-onnx-audit-report}" \
    --format "${ONNX_AUDIT_FORMATS:-html,markdown,sarif,junit}"
if [ -n "${ONNX_AUDIT_BASELINE:-}" ]; then
    set -- "$@" --baseline "$ONNX_AUDIT_BASELINE"
fi
set -f # options are split into words, but "*" in them stays as it is
# shellcheck disable=SC2086
exec onnx-audit gate "$model" --probes "$probes" "$@" ${ONNX_AUDIT_OPTIONS:-}
