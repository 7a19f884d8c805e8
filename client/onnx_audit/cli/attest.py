"""`onnx-audit attest` and `onnx-audit verify`: a verdict that travels with the model, signed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_audit import v1
from onnx_audit.cli.options import Connection, connection_options, seconds
from onnx_audit.cli.output import report_source
from onnx_audit.cli.policy_view import exit_status
from onnx_audit.client import Client
from onnx_audit.policies import load_policy

if TYPE_CHECKING:
    from onnx_audit.attestation.statement import Attested

NOT_VERIFIED = 1
_LIBRARIES = ("cryptography", "in_toto_attestation", "securesystemslib")


@click.command(
    epilog=(
        "\b\n"
        "Examples:\n"
        "  openssl genpkey -algorithm ed25519 -out key.pem\n"
        "  openssl pkey -in key.pem -pubout -out key.pub\n"
        "  onnx-audit attest audits/0190f3c2 --key key.pem -o model.intoto.json\n"
        "  onnx-audit attest onnx-audit-report/ --policy strict --key env:SIGNING_KEY \\\n"
        "      -o model.intoto.json\n"
        "\n"
        "\b\n"
        "Exit status: that of the verdict, 0 PASS, 1 FAIL, 2 INCONCLUSIVE; the attestation of\n"
        "another verdict than PASS is written too, and does not verify."
    )
)
@click.argument("source", metavar="REPORT|AUDIT")
@click.option(
    "--key",
    metavar="FILE|env:NAME",
    required=True,
    help="Private key, as PEM without password: ECDSA on P-256 or Ed25519. It stays here.",
)
@click.option(
    "--policy",
    metavar="FILE|NAME",
    help="Policy that the verdict is of.  [default: the verdict that the audit has]",
)
@click.option(
    "--baseline", metavar="REPORT|AUDIT", help="What the policy compares the report with."
)
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The signed envelope.",
)
@connection_options
@click.pass_context
def attest(
    ctx: click.Context,
    *,
    source: str,
    key: str,
    policy: str | None,
    baseline: str | None,
    out: Path,
    connection: Connection,
) -> None:
    """Sign what a policy says of the report of a model.

    The statement names the model's files, probes, policy, report and environment by digest. The
    service evaluates; this command signs.
    """
    _require_libraries()
    from onnx_audit.attestation import envelope, keys, statement  # noqa: PLC0415 - of an extra

    if baseline is not None and policy is None:
        raise click.UsageError("--baseline needs --policy")
    signer = keys.load_signer(key)
    with connection.open() as client:
        report, result = _verdict(client, source, policy, baseline)
    out.write_bytes(envelope.sign(statement.make(report, result), signer))
    verdict = v1.Verdict.Name(result.verdict).removeprefix("VERDICT_")
    click.echo(f"wrote {out}: {verdict}, signed by key {signer.public_key.keyid[:12]}")
    ctx.exit(exit_status(result))


def _verdict(
    client: Client, source: str, policy: str | None, baseline: str | None
) -> tuple[v1.Report, v1.PolicyResult]:
    """The report, and what is said of it: by a policy now, or by the audit's when it ended."""
    given = report_source(source)
    report = given if isinstance(given, v1.Report) else client.report(given)
    if policy is None:
        return report, client.get_audit(report.execution.audit).policy_result
    compared = None if baseline is None else report_source(baseline)
    return report, client.evaluate_policy(given, load_policy(policy), compared)


@click.command(
    epilog=(
        "\b\n"
        "Example:\n"
        "  onnx-audit verify model.intoto.json --key key.pub --model model.onnx --max-age 30d\n"
        "\n"
        "\b\n"
        "Exit status:\n"
        "  0  signed by the key, about this model, and the verdict is PASS\n"
        "  1  not so\n"
        "  2  wrong usage, or a file that cannot be read"
    )
)
@click.argument("envelope_path", metavar="ENVELOPE", type=click.Path(dir_okay=False))
@click.option(
    "--key", metavar="FILE|env:NAME", required=True, help="Public key of the signer, as PEM."
)
@click.option(
    "--model",
    metavar="FILE",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The ONNX file that is about to be used; its external data is looked for beside it.",
)
@click.option(
    "--policy", metavar="FILE|NAME", help="Policy that the verdict has to be of; else any."
)
@click.option(
    "--max-age",
    metavar="DURATION",
    callback=seconds,
    help="Longest time since the end of the audit, such as 12h or 30d.",
)
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    envelope_path: str,
    key: str,
    model: Path,
    policy: str | None,
    max_age: float | None,
) -> None:
    """Check that a model was audited and has passed; needs no service."""
    _require_libraries()
    from onnx_audit.attestation import envelope, keys, statement  # noqa: PLC0415 - of an extra

    public = keys.load_verifier(key)
    rules = None if policy is None else load_policy(policy).policy
    files = statement.model_digests(model)
    content = Path(envelope_path).read_bytes()
    try:
        attested = statement.read(envelope.verify(content, public))
        statement.require_model(attested, files)
        if rules is not None:
            statement.require_policy(attested, rules)
        if max_age is not None:
            statement.require_age(attested, max_age)
        statement.require_pass(attested)
    except envelope.NotVerified as error:
        click.echo(f"NOT VERIFIED: {error}", err=True)
        ctx.exit(NOT_VERIFIED)
    click.echo(f"VERIFIED: {model} {_summary(attested)}")


def _summary(attested: Attested) -> str:
    """What a verified attestation says, in a line."""
    when = f", audited {attested.audited:%Y-%m-%d}" if attested.audited else ""
    warned = f"; gates that only warn or are waived: {', '.join(attested.warned)}"
    report = attested.configuration.get("report", "")[:12]
    return f"{attested.result} (report {report}{when})" + (warned if attested.warned else "")


def _require_libraries() -> None:
    """Ends with a hint where the extra is not installed."""
    for name in _LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise click.UsageError(
                f"attestations need the extra attest ({error}): pip install 'onnx-audit[attest]'"
            ) from None
