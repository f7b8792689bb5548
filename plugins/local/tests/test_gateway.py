"""Attempts by curl, over TLS, train the weights of a real model."""

import asyncio
import json
import shutil
import subprocess

import pytest

import art_core as art
from art_core.data.trajectory import tokens_of
from art_local.testing.tiny import save_tiny_model

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl and openssl"
    ),
]


@pytest.fixture
def certificate(tmp_path):
    """Return a certificate for 127.0.0.1 and its key, as files."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    written = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*made, *named, *written], check=True, stderr=subprocess.DEVNULL)
    return str(cert), str(key)


async def test_a_shell_trains_a_step_over_tls(certificate, tmp_path):
    cert, private = certificate
    tiny = str(save_tiny_model(tmp_path / "tiny"))
    backend = art.backend("local", device="cpu", dtype="float32", progress=False)
    model = art.TrainableModel(
        name="agent", project="p", base_model=tiny, base_path=tmp_path, sinks=[]
    )
    await model.register(backend)

    async def curl(url, body, key, *, trusted=True):
        trust = ["--cacert", cert] if trusted else []
        words = ["curl", "--silent", "--show-error", *trust, "--data", json.dumps(body), url]
        headers = ["--header", f"Authorization: Bearer {key}", "--header", "Expect:"]
        done = await asyncio.to_thread(
            subprocess.run, [*words, *headers], check=False, capture_output=True, text=True
        )
        return json.loads(done.stdout) if trusted else done

    async with model.gateway(ssl_certfile=cert, ssl_keyfile=private) as gateway:

        async def attempt(tokens):
            begun = await curl(f"{gateway.url}/attempts", {"scenario_id": "s"}, gateway.api_key)
            asked = {
                "model": begun["model_name"],
                "messages": [{"role": "user", "content": "Say something."}],
                "max_tokens": tokens,
            }
            url = f"{begun['base_url']}/chat/completions"
            answer = await curl(url, asked, begun["api_key"])
            said = answer["choices"][0]["message"]["content"]
            ending = {"reward": float(len(said)), "metrics": {"characters": len(said)}}
            await curl(f"{gateway.url}/attempts/{begun['id']}/end", ending, gateway.api_key)
            return said

        said = [await attempt(tokens) for tokens in (2, 8, 16, 32)]
        group = await gateway.group("s", size=4)
        refused = await curl(f"{gateway.url}/attempts", {}, gateway.api_key, trusted=False)
        result = await model.train([group], learning_rate=1e-3, mask_truncated=False)
        # The weights of this step answer the next attempt.
        await attempt(4)
        (after,) = await gateway.group("s", size=1)
    assert refused.returncode == 60 and "certificate" in refused.stderr
    assert [t.messages()[1]["content"] for t in group] == said
    for trajectory in group:
        tokens = tokens_of(trajectory.messages_and_choices[1])
        # A token is a byte; ids from 256 on are special.
        text = bytes(i for i in tokens.completion_ids if i < 256).decode(errors="replace")
        assert text.startswith(trajectory.messages()[1]["content"])
    assert (result.step, result.metrics["data/step_num_sequences"]) == (1, 4)
    # Log-probs of other tokens would be nats apart.
    assert result.metrics["loss/engine_logprob_diff"] < 1e-3
    assert after.final_policy_version == 1
    await model.close()
    await backend.close()
