"""Images of messages: data URLs, and files that hold each image once."""

import hashlib

import pytest

from art_core.base.images import (
    data_url,
    image_bytes,
    image_digest,
    image_urls,
    reader_of_images,
    url_of,
    with_images_in_files,
)

PNG = b"\x89PNG one"
URL = data_url("image/png", PNG)
OTHER = data_url("image/jpeg", b"two")


def part(url):
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def test_a_data_url_has_its_bytes_again():
    assert data_url("image/png", b"one") == "data:image/png;base64,b25l"
    assert image_bytes(URL) == PNG
    assert image_digest(URL) == hashlib.sha256(PNG).hexdigest()


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.png",
        "data:image/png;base64,",
        "data:image/png;base64,???",
        "data:image/gif;base64,R0lG",
        "data:text/plain;base64,R0lG",
        "image/png;base64,R0lG",
        "data:image/png,R0lG",
    ],
)
def test_other_urls_have_no_bytes(url):
    assert image_bytes(url) is None
    assert image_digest(url) == hashlib.sha256(url.encode()).hexdigest()


def test_the_images_of_a_message_are_found_in_both_forms():
    short = {"type": "image_url", "image_url": OTHER}
    content = [part(URL), {"type": "text", "text": "a"}, "b", short, {"type": "image_url"}]
    assert [*image_urls({"content": content})] == [URL, OTHER]
    assert [*image_urls({"content": "a"})] == [*image_urls({})] == []
    assert url_of("a") is None


def test_an_image_that_many_messages_have_is_one_file(tmp_path):
    folder = tmp_path / "images"
    text = {"role": "user", "content": "no image"}
    assert with_images_in_files(text, folder) is text
    assert not folder.exists()
    web = part("https://example.org/a.png")
    message = {"role": "user", "content": [part(URL), {"type": "text", "text": "a"}, web]}
    stored = [with_images_in_files(message, folder) for _ in range(3)]
    short = {"role": "user", "content": [{"type": "image_url", "image_url": OTHER}]}
    stored.append(with_images_in_files(short, folder))
    digests = [hashlib.sha256(data).hexdigest() for data in (PNG, b"two")]
    names = [f"{digests[0]}.png", f"{digests[1]}.jpg"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert (folder / names[0]).read_bytes() == PNG
    assert stored[0]["content"] == [part(f"art-image:{names[0]}"), *message["content"][1:]]
    assert message["content"][0] == part(URL)  # the message of the rollout stays
    put_back = reader_of_images(folder)
    assert [put_back(each) for each in stored[:3]] == [message] * 3
    assert put_back(stored[3])["content"] == [{"type": "image_url", "image_url": {"url": OTHER}}]
    assert put_back(text) is text


def test_a_file_that_is_missing_is_named_and_no_path_leaves_the_folder(tmp_path, caplog):
    (tmp_path / "secret.png").write_bytes(b"secret")
    put_back = reader_of_images(tmp_path / "images")
    for name in ("0.png", "../secret.png", "a.exe"):
        message = {"content": [part(f"art-image:{name}")]}
        assert put_back(message) == message
    assert caplog.text.count("is missing: a stored message has an image") == 3
