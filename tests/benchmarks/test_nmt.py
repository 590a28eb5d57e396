"""The translation benchmark: what is exported computes what was trained, and figures are what they say."""

from __future__ import annotations

import gzip
import json
import re
import tomllib
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
sacrebleu = pytest.importorskip("sacrebleu")

from benchmarks import rivals  # noqa: E402
from benchmarks.nmt import scoring  # noqa: E402
from benchmarks.nmt.__main__ import parse_arguments  # noqa: E402
from benchmarks.nmt.contenders import CONTENDERS, LONGEST, PAPER, PAPER_BITS, compress, prepare, recipe_for  # noqa: E402
from benchmarks.nmt.corpus import BEGIN, END, batches_by_tokens, encode, padded, read_part, train_subwords  # noqa: E402
from benchmarks.nmt.decisions import decision_section, decisions_of  # noqa: E402
from benchmarks.nmt.decoding import (  # noqa: E402
    Stepper,
    beam,
    cross_entropies,
    first_feeds,
    greedy,
    open_sessions,
    shifted,
    translate,
)
from benchmarks.nmt.export import export  # noqa: E402
from benchmarks.nmt.network import Shape, Translator, token_loss  # noqa: E402
from benchmarks.nmt.report import Entry, report  # noqa: E402
from benchmarks.nmt.sensitivity import KINDS, frequency_order, rounded, sensitivity_table  # noqa: E402
from benchmarks.nmt.sharing import SHARED, share  # noqa: E402
from benchmarks.nmt.speed import fastest  # noqa: E402
from benchmarks.nmt.training import Schedule, retrained, trained  # noqa: E402
from qcompiler.model.attention import find_attention  # noqa: E402
from qcompiler.model.load import load_model  # noqa: E402
from qcompiler.model.sublayers import sublayers  # noqa: E402
from qcompiler.plan import CompressionPlan, Role  # noqa: E402

SHAPE = Shape(width=32, heads=2, hidden=48, layers=2, vocabulary=60)
SOURCE = np.array([[5, 6, 7, END], [8, 9, END, 0], [10, END, 0, 0]])
TARGET = np.array([[11, 12, 13, 14, END], [15, END, 0, 0, 0], [16, 17, END, 0, 0]])
WORDS = {
    "en": ["a", "man", "walks", "by", "the", "red", "house", "with", "his", "dog"],
    "de": ["ein", "mann", "geht", "am", "roten", "haus", "mit", "hund"],
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    made = Translator(SHAPE, dropout=0.0).eval()
    with torch.no_grad():  # so that tokens follow from the source and not from the token before alone
        for parameter in made.parameters():
            parameter.mul_(2.0 if parameter.dim() > 1 else 1.0)
    return made


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    return export(network, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Give a folder with a corpus of the form of Multi30k."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "text" / "multi30k"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 40), ("val", 6), ("test_2016_flickr", 6)):
        lengths = generator.integers(2, 8, count)
        for language, words in WORDS.items():
            lines = [" ".join(generator.choice(words, length)) for length in lengths]
            with gzip.open(folder / f"{name}.lc.norm.tok.{language}.gz", "wt", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
    return root


def logits_of(network):
    with torch.no_grad():
        return network(torch.from_numpy(SOURCE), torch.from_numpy(TARGET)).numpy()


def test_the_files_compute_what_the_network_computes(network, files):
    sessions = open_sessions(*files[:2])
    feeds = {**first_feeds(sessions, SOURCE), "tokens": shifted(TARGET)}
    assert np.allclose(sessions.decoder.run(["logits"], feeds)[0], logits_of(network), atol=1e-4)


def test_token_by_token_with_caches_is_the_same_as_all_at_once(network, files):
    stepper, wanted = Stepper(open_sessions(*files[:2]), SOURCE), logits_of(network)
    for place, tokens in enumerate(shifted(TARGET).T):
        assert np.allclose(stepper.step(tokens), wanted[:, place], atol=1e-4)


def test_padding_and_the_other_sentences_change_nothing(files):
    sessions = open_sessions(*files[:2])
    together = greedy(sessions, SOURCE)
    alone = [greedy(sessions, row[row > 0][None])[0] for row in SOURCE]
    shortest = min(len(row) for row in alone)
    assert [row[:shortest] for row in together] == [row[:shortest] for row in alone]


def test_a_beam_of_one_is_greedy_and_a_wider_one_finds_no_less_probable_sentence(files):
    sessions = open_sessions(*files[:2])
    first = greedy(sessions, SOURCE)
    assert beam(sessions, SOURCE, 1) == first
    assert any(first)

    def score(found):
        total = []
        for source, ids in zip(SOURCE, found, strict=True):
            feeds = {**first_feeds(sessions, source[None]), "tokens": shifted(np.array([[*ids, END]]))}
            logits = sessions.decoder.run(["logits"], feeds)[0][0].astype(np.float64)
            logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            total.append(logs[np.arange(len(ids) + 1), [*ids, END]].sum() / (len(ids) + 1) ** 0.6)
        return np.array(total)

    wider = beam(sessions, SOURCE, 8)
    assert score(wider).mean() >= score(first).mean() - 1e-4


def test_the_whole_computes_what_the_files_compute_and_is_even_behind_padding(network, files):
    tokens = shifted(TARGET)
    whole = ort.InferenceSession(files[2], providers=["CPUExecutionProvider"])
    found = whole.run(None, {"source": SOURCE, "tokens": tokens})[0]
    wanted = torch.from_numpy(logits_of(network)).softmax(-1).numpy()
    there = tokens > 0
    assert np.allclose(found[there], wanted[there], atol=1e-5)
    assert np.allclose(found[~there], 1 / SHAPE.vocabulary)


def test_constants_have_the_same_names_in_the_whole_and_in_the_files(files):
    encoder, decoder, whole = ({t.name for t in onnx.load(path).graph.initializer} for path in files)
    assert {name for name in encoder | decoder if name.endswith(("weight", "bias", "table"))} <= whole


def test_tables_are_stored_once_and_every_attention_is_found(files):
    counts = []
    for path, blocks in zip(files, (2, 4, 6), strict=True):
        large = [t for t in onnx.load(path).graph.initializer if list(t.dims) == [SHAPE.vocabulary, SHAPE.width]]
        assert len(large) == 1
        model = load_model(path).model
        found, missed = find_attention(model)
        assert len(found) == blocks
        assert all(block.matched for block in found)
        assert missed == ()
        counts.append(sorted(set(sublayers(model).values())))
    assert counts[0] == ["embedding", "feed-forward", "self-attention"]
    decoder = ["embedding", "feed-forward", "cross-attention", "self-attention"]
    assert counts[1] == sorted(f"decoder {kind}" for kind in decoder)


def test_the_papers_bits_reach_every_product_but_the_tables(files):
    bits = {p: table["bits"] for p, table in tomllib.loads(recipe_for(PAPER_BITS))["match"].items()}
    assert bits == PAPER_BITS
    names = sublayers(load_model(files[2]).model)
    reached = {name for name in names if sum(bool(re.search(pattern, name)) for pattern in bits) == 1}
    assert set(names) - reached == {"table"}


def test_a_contender_shares_the_codes_of_the_table_between_its_files(data, tmp_path):
    tokenizer = train_subwords(read_part(data, "train"))
    shape = Shape(width=32, heads=2, hidden=48, layers=1, vocabulary=300)
    torch.manual_seed(0)
    network = Translator(shape, dropout=0.0).eval()
    export(network, tmp_path)
    base = prepare(tmp_path, tokenizer, data)
    counts = np.zeros(300, int)
    counts[: len(np.load(base.counts))] = np.load(base.counts)
    assert counts[BEGIN] == len(read_part(data, "train").source)
    np.save(base.counts, counts)
    with np.load(base.whole_data) as archive:
        assert archive["source"].shape[1] <= LONGEST
    words = ("--bits", "W4A8", "--embedding-bits", "2-3", "--token-counts", "counts.npy")
    named = {c.name: c for c in CONTENDERS}
    contender = replace(named[PAPER], words=(*named["W8A8"].words[:-2], *words))
    found = compress(contender, base, 0, tmp_path / "made")
    assert [path.name for path in found.files] == ["encoder.onnx", "decoder.onnx", SHARED], found.runs
    assert found.files[2].stat().st_size > 300 * 32 * 2 / 8
    decoded = CompressionPlan.load(tmp_path / "made" / "decoder").tensors.values()
    weights = {t.name for t in decoded if t.role is Role.WEIGHT}
    assert weights
    assert not any(name.startswith("encoder") for name in weights)
    planes = [
        {t.raw_data for t in onnx.load(run.model).graph.initializer if "table_plane" in t.name}
        for run in found.runs[1:]
    ]
    assert planes[0] == planes[1]
    assert all(plane in found.files[2].read_bytes() for plane in planes[0])
    alone = sum(run.model.stat().st_size for run in found.runs[1:])
    assert scoring.total_bytes(found.files) < alone
    exact, coarse = (open_sessions(*pair) for pair in ((base.encoder, base.decoder), found.files[:2]))
    first, second = (cross_entropies(o, tokenizer, ["a man"], ["ein mann"]) for o in (exact, coarse))
    assert 0 < abs(first[0, 0] - second[0, 0]) < 2


# -- corpus ------------------------------------------------------------------------------------------


def test_batches_hold_every_sentence_once_and_keep_to_their_size():
    generator = np.random.default_rng(0)
    sources = [list(generator.integers(4, 50, size)) for size in generator.integers(2, 12, 50)]
    targets = [[number + 4] * int(size) for number, size in enumerate(generator.integers(2, 12, 50))]
    seen = []
    for source, target in batches_by_tokens(sources, targets, 60, np.random.default_rng(1)):
        assert max(source.size, target.size) <= 60
        seen += target[:, 0].tolist()
    assert sorted(seen) == [number + 4 for number in range(50)]


def test_subwords_give_the_words_back(data):
    sentences = read_part(data, "train")
    tokenizer = train_subwords(sentences)
    ids = encode(tokenizer, sentences.target[:5])
    assert all(row[-1] == END for row in ids)
    assert [tokenizer.decode(row[:-1]) for row in ids] == list(sentences.target[:5])
    assert padded(ids).shape == (5, max(map(len, ids)))


# -- training ----------------------------------------------------------------------------------------


def test_training_is_kept_and_another_schedule_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.nmt.training.Translator", lambda dropout: Translator(SHAPE_OF_WORDS, dropout))
    schedule = Schedule(minutes=0.02, tokens=64, warmup=20, threads=torch.get_num_threads())
    network, cost = trained(data, tmp_path, schedule)
    again, _ = trained(data, tmp_path, schedule)
    assert cost["steps"] > 0
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    with pytest.raises(SystemExit, match="another cache"):
        trained(data, tmp_path, Schedule(minutes=1.0))


def test_a_network_that_is_trained_on_begins_with_what_was_trained(data, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.nmt.training.Translator", lambda dropout: Translator(SHAPE_OF_WORDS, dropout))
    first = Schedule(minutes=0.02, tokens=64, warmup=20, threads=torch.get_num_threads())
    network, _ = trained(data, tmp_path, first)
    still, cost = retrained(data, tmp_path, first, replace(first, minutes=0.005, peak=1e-9))
    assert cost["steps"] > 0
    pairs = zip(network.parameters(), still.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


SHAPE_OF_WORDS = Shape(width=32, heads=2, hidden=48, layers=1, vocabulary=200)


# -- scoring -----------------------------------------------------------------------------------------


def test_statistics_add_up_to_what_sacrebleu_says():
    lines = ["das ist ein haus .", "ein mann steht auf der straße und raucht", "ja"]
    references = ["das ist ein kleines haus .", "ein mann steht auf der straße und trinkt", "nein danke"]
    statistics = scoring.bleu_statistics(lines, references)
    wanted = sacrebleu.corpus_bleu(lines, [references], tokenize="none", force=True).score
    assert scoring.corpus_bleu(statistics.sum(0)) == pytest.approx(wanted)
    assert "tok:none" in scoring.signature()
    assert scoring.paired_interval(statistics, statistics) == (0.0, 0.0)
    perfect = scoring.bleu_statistics(references, references)
    low, high = scoring.paired_interval(np.tile(perfect, (20, 1)), np.tile(statistics, (20, 1)))
    assert 0 < low < high


def test_cross_entropy_is_that_of_the_network(data, files, network, tmp_path):
    class Words:
        """Stands in for a tokenizer whose lines are numbers."""

        def encode_batch(self, lines):
            return [type("Entry", (), {"ids": [int(n) for n in line.split()]}) for line in lines]

    lines = [" ".join(str(n) for n in row if n > END) for row in SOURCE]
    wanted = [" ".join(str(n) for n in row if n > END) for row in TARGET]
    found = cross_entropies(open_sessions(*files[:2]), Words(), lines, wanted, rows=2)
    mean = token_loss(torch.from_numpy(logits_of(network)), torch.from_numpy(TARGET))
    assert found[:, 0].sum() / found[:, 1].sum() == pytest.approx(float(mean), rel=1e-4)
    assert found[:, 1].sum() == (TARGET > 0).sum()


def test_constants_that_two_files_hold_lie_in_one_file_and_compute_the_same(network, files, tmp_path):
    shared = share({"encoder": files[0], "decoder": files[1]}, tmp_path)
    table = SHAPE.vocabulary * SHAPE.width * 4
    assert [path.name for path in shared] == ["encoder.onnx", "decoder.onnx", SHARED]
    assert shared[2].stat().st_size >= table
    saved = sum(path.stat().st_size for path in files[:2]) - scoring.total_bytes(shared)
    assert saved > table - 500
    inner = [
        name for p in shared[:2] for node in onnx.load(p, load_external_data=False).graph.node for name in node.output
    ]
    assert max(map(len, set(inner) - {"memory", "logits"} - {n for n in inner if n.startswith("present")})) <= 4
    assert shared[2].stat().st_size < table + 5000
    feeds = {**first_feeds(open_sessions(*shared[:2]), SOURCE), "tokens": shifted(TARGET)}
    found, exact = (open_sessions(*pair).decoder.run(["logits"], feeds)[0] for pair in (shared[:2], files[:2]))
    assert np.array_equal(found, exact)


def test_a_part_is_scored_kept_and_reported(data, tmp_path):
    tokenizer = train_subwords(read_part(data, "train"))
    tokenizer.save(str(tmp_path / "subwords.json"))
    shape = Shape(width=32, heads=2, hidden=48, layers=1, vocabulary=tokenizer.get_vocab_size())
    pair = export(Translator(shape).eval(), tmp_path / "float")[:2]
    found = scoring.score(pair, tmp_path / "subwords.json", data, "val", 1)
    assert found.lines == tuple(translate(open_sessions(*pair), tokenizer, read_part(data, "val").source))
    scoring.save(found, tmp_path / "val.json")
    kept = scoring.load(tmp_path / "val.json")
    assert kept.lines == found.lines
    assert kept.bleu == found.bleu
    assert kept.entropy == pytest.approx(found.entropy)
    cost = {"cpu_minutes": 1.0, "wall_minutes": 1.0, "epochs": 1.0}
    text = report([Entry("float", 0, 200, 0.0, {"val": kept}), Entry("half", 0, 100, 1.0, {"val": kept})], cost, 1)
    assert "| half | 0 | 0.000 | 2.00x |" in text
    assert "+0.00 (+0.00 to +0.00)" in text
    samples = prepare(tmp_path / "float", tokenizer, data)
    with np.load(samples.decoder_data) as archive:
        assert archive["tokens"].shape[0] == archive["past_self_key_0"].shape[0] == archive["memory"].shape[0]
        assert archive["past_self_key_0"].shape[2] == 0
    assert np.load(samples.counts).sum() > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--contenders", "W9A9"], "no W9A9"),
        (["--parts", "train"], "no train"),
        (["--data", "nowhere"], "no text/multi30k"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(words, message, data, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--data", str(data), *words])
    assert message in capsys.readouterr().err


def test_the_float_model_always_takes_part(data):
    given = parse_arguments(["--data", str(data), "--contenders", "W4A8"])
    assert [contender.name for contender in given.contenders] == ["float", "W4A8"]
    assert given.parts == ("val",)


def test_a_contender_brings_the_one_that_it_starts_from(data):
    given = parse_arguments(["--data", str(data), "--contenders", "11.8x distilled"])
    assert [contender.name for contender in given.contenders] == ["float", "11.8x", "11.8x distilled"]
    assert all(c.start in {other.name for other in CONTENDERS[:place]} | {""} for place, c in enumerate(CONTENDERS))


def test_the_fastest_turn_of_each_counts(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 6.0, 10.0, 13.0, 13.0, 20.0])
    monkeypatch.setattr("benchmarks.nmt.speed.time.process_time", lambda: next(clock))
    order = []
    assert fastest([lambda: order.append("a"), lambda: order.append("b")], 2) == [3.0, 1.0]
    assert order == ["a", "b", "a", "b"]


def test_decisions_are_those_of_the_report(tmp_path):
    row = {"name": "decoder feed-forward", "values": [2e6, 0.2, 1.5, 0.03, 0.001, 0.002, 0.003, 0.004]}
    entries = [
        {"name": "allocate-bits", "metrics": [{"name": "mean width", "value": 2.346}], "tables": []},
        {"name": "solve-codes", "metrics": [{"name": "attention", "value": 9}], "tables": []},
    ]
    entries[0]["tables"] = [{"title": "bits by sublayer", "rows": [row]}]
    (tmp_path / "whole.failed").mkdir()
    (tmp_path / "whole.failed" / "report.json").write_text(json.dumps({"passes": entries}))
    found = decisions_of(tmp_path / "whole")
    text = decision_section([("small", found), ("none", decisions_of(tmp_path / "missing"))])
    assert "| small | 2.35 | - | - of 9 |" in text
    assert "| decoder feed-forward | 2.00 M | 1.50 | 0.0300 | 0.0010 |" in text
    assert "| none | - | - | - of - |" in text


# -- sensitivity -------------------------------------------------------------------------------------


def test_only_the_sublayers_that_are_asked_for_are_rounded(network):
    order = np.arange(SHAPE.vocabulary)
    found, total = rounded(network, {"decoder cross-attention": 2}, order)
    before, after = dict(network.named_parameters()), dict(found.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"decoder.{i}.cross_attention.{n}.weight" for i in range(2) for n in ("query", "key", "value", "output")
    }
    assert total == 2 * 8 * SHAPE.width**2
    assert all(np.unique(row).size <= 4 for row in after["decoder.0.cross_attention.key.weight"].detach().numpy())


def test_frequent_words_get_more_bits(network):
    order = frequency_order([[7] * 9 + [5] * 4, [3]], SHAPE.vocabulary)
    assert order[:3].tolist() == [7, 5, 3]
    found, total = rounded(network, {"embedding": (4, 3, 2, 1)}, order)
    levels = [np.unique(row).size for row in found.table.weight.detach().numpy()[order]]
    assert max(levels[-15:]) == 2
    assert max(levels[:15]) > 8
    assert total == SHAPE.vocabulary * SHAPE.width * 2.5


def test_the_sensitivity_table_has_every_kind(network):
    sources = [[int(n) for n in row if n] for row in SOURCE]
    targets = [[int(n) for n in row if n] for row in TARGET]
    text = sensitivity_table(network, (sources, targets), np.arange(SHAPE.vocabulary))
    assert all(f"| {kind} |" in text for kind in (*KINDS, "all of them"))
    with torch.no_grad():
        base = float(token_loss(network(torch.from_numpy(SOURCE), torch.from_numpy(TARGET)), torch.from_numpy(TARGET)))
    assert f"Float: {base:.4f}" in text


# -- the dynamic contender -----------------------------------------------------------------------------


def test_the_contender_gets_a_gemm_of_its_own_and_a_model_that_still_computes_the_same(files, tmp_path):
    notes = []
    model = rivals._untied(onnx.load(files[1]), notes)
    onnx.save(model, tmp_path / "untied.onnx")
    assert len(notes) == 1
    large = [t for t in model.graph.initializer if list(t.dims) == [SHAPE.vocabulary, SHAPE.width]]
    assert len(large) == 2
    found = [open_sessions(files[0], path) for path in (files[1], tmp_path / "untied.onnx")]
    feeds = {**first_feeds(found[0], SOURCE), "tokens": shifted(TARGET)}
    first, second = (sessions.decoder.run(["logits"], feeds)[0] for sessions in found)
    assert np.array_equal(first, second)
    assert rivals._untied(onnx.load(files[0]), notes) == onnx.load(files[0])
