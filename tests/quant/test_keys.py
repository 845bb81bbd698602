import pytest

from quant.keys import content_key, files_sha256


def test_content_key_ignores_order_of_keys_only():
    key = content_key({"a": 1, "b": [1, 2], "c": "é"})
    assert key == content_key({"c": "é", "b": [1, 2], "a": 1})
    assert len(key) == 12 and set(key) <= set("0123456789abcdef")
    assert key != content_key({"a": 1, "b": [2, 1], "c": "é"})
    assert key != content_key({"a": 1.5, "b": [1, 2], "c": "é"})


def test_content_key_refuses_what_json_cannot_hold():
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key({"a": float("nan")})
    with pytest.raises(TypeError, match="not JSON serializable"):
        content_key({"a": object()})


def test_files_hash_sees_names_and_boundaries(tmp_path):
    def digest(*contents):
        paths = []
        for name, content in contents:
            (tmp_path / name).write_bytes(content)
            paths.append(tmp_path / name)
        return files_sha256(paths, root=tmp_path)

    first = digest(("a", b"12"), ("b", b"3"))
    assert first == digest(("a", b"12"), ("b", b"3"))
    assert first != digest(("a", b"1"), ("b", b"23"))
    assert first != digest(("a", b"12"), ("c", b"3"))
