"""A corpus: every document in one of two streams, every token of a stream in one block, whatever the length."""

import gzip
import lzma

import numpy as np
import pytest
import torch
from support.plain import kind
from support.tiny import TOKENIZERS, invent

from pet.errors import CorpusError
from pet.modeling.tokenization import PromptTokenizer
from pet.training.mlm_corpus import (
    Blocks,
    find_files,
    is_held_out,
    lay_blocks,
    open_blocks,
    read_documents,
    stream_type,
    write_streams,
)

FAMILIES = ["bert", "roberta", "xlm-roberta"]


def prompt_tokenizer_of(family):
    return PromptTokenizer(TOKENIZERS[kind(family)](), family)


@pytest.mark.parametrize("opener", [open, gzip.open, lzma.open], ids=["plain", "gz", "xz"])
def test_a_document_is_a_line_that_is_not_empty(opener, tmp_path):
    path = tmp_path / f"a.txt{ {open: '', gzip.open: '.gz', lzma.open: '.xz'}[opener] }"
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("one é\n\n  \ntwo two\r\n three")
    assert list(read_documents([path, path])) == ["one é", "two two", "three"] * 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [3, 1024])
def test_the_streams_hold_every_document_and_a_separator_in_order(family, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr("pet.training.mlm_corpus.CHUNK", chunk)
    prompt_tokenizer, documents = prompt_tokenizer_of(family), invent(200)
    counts = write_streams(tmp_path, iter(documents), prompt_tokenizer, 0.3)
    for name, held_out in (("train", False), ("held_out", True)):
        wanted = [one for one in documents if is_held_out(one, 0.3) == held_out]
        ids = np.fromfile(tmp_path / f"{name}.tokens", dtype=stream_type(prompt_tokenizer))
        separator = prompt_tokenizer.tokenizer.sep_token_id
        expected = [token for one in wanted for token in [*prompt_tokenizer.spell([one])[0].tolist(), separator]]
        assert ids.tolist() == expected
        assert counts[name] == {"documents": len(wanted), "tokens": len(expected)}


def test_what_is_held_out_is_about_the_share_that_was_asked_for_and_depends_on_nothing_else():
    documents = [f"document {number}" for number in range(4000)]
    few = {one for one in documents if is_held_out(one, 0.1)}
    assert 320 < len(few) < 480  # six standard deviations
    assert few < {one for one in documents if is_held_out(one, 0.2)}


@pytest.mark.parametrize("length", [8, 13, 128])
def test_blocks_hold_the_stream_token_by_token_between_special_tokens(length):
    prompt_tokenizer = prompt_tokenizer_of("bert")
    tokens = np.arange(1000, dtype=np.uint16)
    blocks = Blocks(tokens, prompt_tokenizer.frames[1], length)
    ids = blocks.read(np.arange(len(blocks)))
    assert ids.shape == (1000 // (length - 2), length)
    assert set(ids[:, 0]) == {prompt_tokenizer.tokenizer.cls_token_id}
    assert set(ids[:, -1]) == {prompt_tokenizer.tokenizer.sep_token_id}
    assert ids[:, 1:-1].ravel().tolist() == list(range(len(blocks) * (length - 2)))
    assert blocks.read(np.asarray([3, 1]))[1].tolist() == ids[1].tolist()


def test_blocks_are_read_from_their_file(tmp_path):
    prompt_tokenizer = prompt_tokenizer_of("bert")
    write_streams(tmp_path, iter(invent(300)), prompt_tokenizer, 0.3)
    blocks = open_blocks(tmp_path, "train", prompt_tokenizer, 16)
    whole = np.fromfile(tmp_path / "train.tokens", dtype=stream_type(prompt_tokenizer))
    assert blocks.read(np.arange(len(blocks)))[:, 1:-1].ravel().tolist() == whole[: len(blocks) * 14].tolist()


@pytest.mark.parametrize("padded", [True, False])
def test_blocks_lie_end_to_end(padded):
    batch = lay_blocks(np.arange(24).reshape(3, 8), has_types=True, padded=padded, device=torch.device("cpu"))
    assert len(batch) == 3
    assert batch.input_ids.tolist() == list(range(24))
    assert batch.places.tolist() == [*range(8)] * 3
    assert batch.rows.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert (batch.starts.tolist(), batch.width) == ([0, 8, 16, 24], 8)
    assert batch.token_type_ids.tolist() == [0] * 24
    assert (batch.attention_mask is not None and batch.attention_mask.tolist() == [1] * 24) == padded


def test_a_file_that_is_missing_no_text_or_damaged_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"there is no file a\.txt; there is no file b\.txt"):
        find_files(["a.txt", "b.txt"])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.xz").write_bytes(b"no xz")
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"text\n" * 100)[:-9])
    for name in ("a.txt", "b.xz", "c.gz"):
        with pytest.raises(CorpusError, match=rf"{name} cannot be read as UTF-8 text"):
            list(read_documents([tmp_path / name]))


def test_a_corpus_that_is_too_small_is_refused(tmp_path):
    prompt_tokenizer = prompt_tokenizer_of("bert")
    with pytest.raises(CorpusError, match="0 held out documents; give more"):
        write_streams(tmp_path, iter(["the market"]), prompt_tokenizer, 1e-9)
    write_streams(tmp_path, iter(invent(20)), prompt_tokenizer, 0.5)
    with pytest.raises(CorpusError, match=r"less than one block of 5000; give more text"):
        open_blocks(tmp_path, "train", prompt_tokenizer, 5000)
