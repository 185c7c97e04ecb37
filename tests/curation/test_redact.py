"""Secrets, wherever they stand."""

from __future__ import annotations

from curation import redact


def test_credentials_in_urls() -> None:
    assert redact.redact("s3://AKIA:top/secret@bucket/x") == "s3://***@bucket/x"
    assert redact.redact("s3://AKIA:topsecret@bucket/x") == "s3://***@bucket/x"
    signed = "https://h/p?X-Amz-Signature=abc123&width=3&sig=q&token=t"
    assert redact.redact(signed) == "https://h/p?X-Amz-Signature=***&width=3&sig=***&token=***"


def test_learnt_values_are_found_in_any_text() -> None:
    redact.learn({"storage_options": {"s3": {"key": "AKIA99999", "secret": "hush-hush", "anon": False}}})
    assert redact.redact("failed for hush-hush as AKIA99999") == "failed for *** as ***"
    redact.learn([{"path": "s3://USERNAME1:passphrase2@bucket/x"}])
    assert "passphrase2" not in redact.redact("told passphrase2")


def test_secrets_of_other_stores() -> None:
    options = {
        "abfs": {"account_key": "K" * 9, "password": 12345678, "client_kwargs": {"headers": {"Authorization": "B"}}}
    }
    shown = redact.redact_tree({"storage_options": options})["storage_options"]["abfs"]
    assert shown == {"account_key": "***", "password": "***", "client_kwargs": {"headers": {"Authorization": "***"}}}
    basic = {"storage_options": {"http": {"client_kwargs": {"auth": ["user", "passpass"]}}}}
    assert redact.redact_tree(basic)["storage_options"]["http"]["client_kwargs"] == {"auth": "***"}
    redact.learn({"storage_options": options})
    assert redact.redact("KKKKKKKKK with 12345678") == "*** with ***"


def test_trees_keep_what_is_no_secret() -> None:
    tree = {
        "name": "pub11",
        "storage_options": {"key": "A" * 9, "secret": "B" * 9, "client_kwargs": {"endpoint_url": "http://h"}},
        "sources": [{"path": "s3://u:p@b/x", "columns": {"key": "id"}}],
    }
    assert redact.redact_tree(tree) == {
        "name": "pub11",
        "storage_options": {"key": "***", "secret": "***", "client_kwargs": {"endpoint_url": "http://h"}},
        "sources": [{"path": "s3://***@b/x", "columns": {"key": "id"}}],
    }
