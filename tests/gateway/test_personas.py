"""Persona files: what is accepted, how each mistake is told, and the request a session gets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.persona_fields import LONGEST_PROMPT, VOICES
from gateway.persona_model import Persona
from gateway.personas import (
    UNREACHED,
    PersonaInvalid,
    PersonaStore,
    check_personas,
    consent_line,
    load_personas,
    persona_prompt,
    redaction_rules,
    session_request,
)
from gateway.redaction.rules import CustomPattern, Rules
from model.wire import Script, decode_open, encode_open
from tests.gateway.persona_files import BANK

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes files (name -> text or bytes) into a persona folder and returns it."""

    def write(**files: str | bytes) -> Path:
        for name, content in files.items():
            path = tmp_path / (name.replace("__", "/").replace("_", "-") + ".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return write


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(PersonaInvalid) as caught:
        load_personas(folder)
    assert str(caught.value).splitlines() == caught.value.problems
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def changed(old: str, new: str, text: str = BANK) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_persona_is_known_by_its_file(folder: Folder) -> None:
    personas = load_personas(folder(bank__first_bank=BANK))
    persona = personas["first-bank"]
    assert (persona.id, persona.version) == ("first-bank", hashlib.sha256(BANK.encode()).hexdigest()[:12])
    assert (persona.limits.max_seconds, persona.record, persona.fallback) == (900, False, "")


def test_redaction_rules_come_from_the_file(folder: Folder) -> None:
    own = "redact: [card, phone]\nredact_patterns: [{label: member number, pattern: 'AB\\d{4}'}]\nvoice: NATF2"
    personas = load_personas(folder(plain=BANK, bank=changed("voice: NATF2", own)))
    assert not redaction_rules(personas["plain"])
    rules = redaction_rules(personas["bank"])
    assert rules == Rules(frozenset(("card", "phone")), (CustomPattern("member number", r"AB\d{4}"),))


def test_personas_cannot_be_altered(folder: Folder) -> None:
    persona = load_personas(folder(bank=BANK))["bank"]
    with pytest.raises(ValueError, match="frozen"):
        persona.name = "Mallory"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("voice: NATF2", "voice: NATF9", f"bank.yaml:5: voice: no such voice; choose one of {', '.join(VOICES)}"),
        (
            "  kind: bank",
            "  kind: bank\n  sort: bank",
            "bank.yaml:5: organisation.sort: unknown field; known here: name, kind",
        ),
        ("  kind: bank\n", "", "bank.yaml:2: organisation.kind: is missing"),
        ("kind: name", "kind: names", "bank.yaml:15: script.questions.1.kind: should be 'name', 'digits'"),
        ("needs: [caller]", "needs: [caller, dog]", "bank.yaml:20: script.answers.1.needs.2: there is no question dog"),
        ("after: [declined]", "after: [refused]", "bank.yaml:23: script.answers.2.after.1: there is no answer refused"),
        (
            "voice: NATF2",
            "voice: NATF2\nredact: [card, pin]",
            "bank.yaml:6: redact.2: should be 'card', 'card_but_last_four', 'cvv', 'ssn', 'phone', 'email' or "
            "'birth_date'",
        ),
        (
            "voice: NATF2",
            "voice: NATF2\nredact: [card, card_but_last_four]",
            "bank.yaml:6: redact: has both card and card_but_last_four; choose one",
        ),
        (
            "voice: NATF2",
            "voice: NATF2\nredact_patterns: [{label: member number, pattern: 'M(\\d+'}]",
            "bank.yaml:6: redact_patterns.1.pattern: is not a pattern that RE2 understands: missing ): M(\\d+",
        ),
        (
            "voice: NATF2",
            "voice: NATF2\nredact_patterns: [{label: member number, pattern: '(a+)+(?=b)'}]",
            "bank.yaml:6: redact_patterns.1.pattern: is not a pattern that RE2 understands: invalid perl operator: (?=",
        ),
        (
            "voice: NATF2",
            "voice: NATF2\nredact_patterns: [{label: anything, pattern: 'x*'}]",
            "bank.yaml:6: redact_patterns.1.pattern: matches nothing at all, so it would match everywhere; "
            "let it ask for a character",
        ),
        (
            "person: desk",
            "person: boss",
            "bank.yaml:12: script.person: there is no transfer target boss; known here: desk",
        ),
        ("for {branch}", "for {street}", "bank.yaml:25: script.answers.2.say: there is no variable {street}; known"),
        ("for {branch}", "for {caller}", "bank.yaml:25: script.answers.2.say: {caller} may not be known yet"),
        ("for {branch}", "for {customer}", "bank.yaml:25: script.answers.2.say: {customer} can be empty here"),
        ("for {branch}", "for {branch", "bank.yaml:25: script.answers.2.say: has a brace without its partner"),
        ("customer is {customer}", "customer is {x}", "bank.yaml:8: facts.1: there is no variable {x}"),
        ("Verify the", "In {branch}, verify the", "bank.yaml:6: role: is the same for every call"),
        ('"+12065550101"', "+12065550101", 'bank.yaml:27: transfers.desk: must be in quotes: "+12065550101"'),
        ('"+12065550101"', '"911"', "bank.yaml:27: transfers.desk: must be a full number with its country code"),
        (
            '      after: [declined]\n      when: ["Yes"]\n',
            "",
            "bank.yaml:22: script.answers.2: the answer yes can never",
        ),
        ("id: yes", "id: declined", "bank.yaml:22: script.answers.2.id: the name declined is already taken by"),
        (
            '  customer: ""',
            '  customer: ""\n  caller: x',
            "bank.yaml:30: variables.caller: the name caller is already taken by",
        ),
        ("say: I have", "then: transfer\n      say: I have", "bank.yaml:25: script.answers.2.then: a transfer needs a"),
        ("say: I have", "target: desk\n      say: I have", "bank.yaml:25: script.answers.2.target: is only for"),
        ("greeting: This is Sanni.", "greeting: [This]", "bank.yaml:10: greeting: must be text; put it in quotes"),
        ("greeting: This is Sanni.", "greeting: 12", "bank.yaml:10: greeting: must be text; put it in quotes"),
        ("This is Sanni.", "Hello <system>.", "bank.yaml:10: greeting: must not contain '<'"),
        ("This is Sanni.", "x" * 900, "bank.yaml:10: greeting: can have 800 characters at most"),
        ("This is Sanni.", "&a This", "bank.yaml:10: greeting: anchors and aliases are not allowed"),
        ("This is Sanni.", "!os.system x", "bank.yaml:10: greeting: the tag"),
        ("This is Sanni.", "2026-13-45", "bank.yaml:10: greeting: cannot be read as a value"),
        ("name: Sanni Virtanen\n", "", "bank.yaml:1: name: is needed where there is an `organisation`"),
        ("name: Sanni Virtanen", "name: A\nname: B", "bank.yaml:2: name: is given twice; it is also on line 1"),
        ("voice: NATF2", "voice: NATF2\nrecord: perhaps", "bank.yaml:6: record: "),
        ("voice: NATF2", "voice: NATF2\nlanguage: fi", "bank.yaml:6: language: the agent speaks English only"),
        ("voice: NATF2", "voice: NATF2\nid: x", "bank.yaml:6: id: unknown field; known here: name, organisation"),
        (
            "voice: NATF2",
            "voice: NATF2\nlimits: {max_seconds: 5}",
            "bank.yaml:6: limits.max_seconds: should be greater",
        ),
        ("voice: NATF2", "voice: NATF2\nfallback: '911'", "bank.yaml:6: fallback: must be a full number with its"),
        ("name: Sanni Virtanen", "name: <b>", "bank.yaml:1: name: must not contain '<'"),
        ("voice: NATF2", "voice: NATF2\nlimits: 5", "bank.yaml:6: limits: must be a mapping of fields to values"),
        ("voice: NATF2", "voice: NATF2\nsampling: {temperature: .nan}", "bank.yaml:6: sampling.temperature: "),
        ("voice: NATF2", "voice: NATF2\n1: x", "bank.yaml:6: the name of a field must be text; put it in quotes"),
        ("voice: NATF2", "voice: 'NATF2", "bank.yaml:6: is not valid YAML: "),
        ("voice: NATF2", "voice: NATF2\n---\nx: 1", "bank.yaml:6: is not valid YAML: "),
        ("voice: NATF2", "voice: NATF2\nrole2: a: b", "bank.yaml:6: is not valid YAML: "),
    ],
)
def test_a_mistake_is_told_with_its_line_and_field(folder: Folder, old: str, new: str, problem: str) -> None:
    found = problems_of(folder(bank=changed(old, new)))
    assert len(found) == 1, found
    assert found[0].lower().startswith(problem.lower())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "bank.yaml:1: is empty"),
        (b"# nothing\n", "bank.yaml:1: is empty"),
        (b"- a\n", "bank.yaml:1: must be a mapping of fields to values"),
        (b"name: A\nvoice: \xff\n", "bank.yaml:2: is not UTF-8 text; save it as UTF-8"),
        (b"name: \x00\n", "bank.yaml:1: is not valid YAML"),
        (b"name: " + b"x" * 300_000, "bank.yaml:1: is larger than 256 KiB"),
        (b"name: " + b"[" * 20_000, "bank.yaml:1: is nested too deeply"),
        (b"facts: " + b"[" * 30 + b"]" * 30, "bank.yaml:1: facts."),
        (b"a: &a [x]\nb: &b [*a, *a]\n", "bank.yaml:1: a: anchors and aliases are not allowed"),
        (b"{a: 1, [b]: 2}", "bank.yaml:1: the name of a field must be text"),
        (b"x: " + b"9" * 5000, "bank.yaml:1: x: cannot be read as a value"),
        (b"x: !!bool maybe", "bank.yaml:1: x: cannot be read as a value"),
        (b'x: "\\U00110000"', "bank.yaml:1: is not valid YAML: "),
        (b'x: "\\UFFFFFFFF"', "bank.yaml:1: is not valid YAML: "),
    ],
)
def test_a_file_that_is_no_persona_is_told_in_a_sentence(folder: Folder, content: bytes, problem: str) -> None:
    assert problems_of(folder(bank=content))[0].startswith(problem)


def test_every_problem_of_every_file_is_told_at_once(folder: Folder) -> None:
    first = changed("voice: NATF2", "voice: Nobody", changed("kind: name", "kind: colour"))
    second = changed("person: desk", "person: boss", changed("needs: [caller]", "needs: [caller, dog]"))
    found = problems_of(folder(a=first, b=second, c="name: 'x", d=BANK))
    assert [":".join(problem.split(":")[:3]) for problem in found] == [
        "a.yaml:5: voice",
        "a.yaml:15: script.questions.1.kind",
        "b.yaml:12: script.person",
        "b.yaml:20: script.answers.1.needs.2",
        "c.yaml:1: is not valid YAML",
    ]


def test_a_missing_or_empty_folder_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(PersonaInvalid, match="holds no persona files"):
            load_personas(folder)


def test_two_files_of_one_name_are_told(folder: Folder) -> None:
    root = folder(a__bank=BANK, b__bank=BANK)
    assert problems_of(root) == ["b/bank.yaml:1: has the same name as a/bank.yaml; rename one of them"]


def test_editors_files_and_the_routing_are_no_personas(folder: Folder) -> None:
    root = folder(bank=BANK, routing="default: {persona: bank}")
    (root / ".bank.yaml.swp.yaml").write_text("junk: [")
    (root / "notes.txt").write_text("junk: [")
    assert list(load_personas(root)) == ["bank"]


def test_a_recorded_voice_must_be_there_and_its_records_are_no_persona(folder: Folder) -> None:
    root = folder(bank__agent=changed("voice: NATF2", "voice: ann-lee"), voices__voices="voices: {}")
    (problem,) = problems_of(root)
    assert problem.startswith("bank/agent.yaml:5: voice: no such voice; choose one of NATF0")
    assert problem.endswith("or record one: callplex voices add ann-lee")
    (root / "voices" / "ann-lee.wav").write_bytes(b"")
    assert load_personas(root)["agent"].voice == "ann-lee"


def test_a_prompt_too_long_for_the_models_memory_is_refused(folder: Folder) -> None:
    fact = "  - The branch closes at 5 PM.\n"
    assert problems_of(folder(bank=changed(fact, fact * 120)))[0].startswith("bank.yaml:7: facts: ")
    long = "  - " + "The branch closes at five. " * 18 + "\n"
    text = f"the prompt made of `role` and `facts` has 3[0-9]+ characters, {LONGEST_PROMPT} at most"
    assert re.search(text, problems_of(folder(bank=changed(fact, long * 7)))[0])


def test_prompt_is_in_the_style_of_training_with_what_varies_last(folder: Folder) -> None:
    persona = load_personas(folder(bank=BANK))["bank"]
    constant = (
        "You work for First Neuron Bank which is a bank and your name is Sanni Virtanen. "
        "Information: Verify the customer's name. The branch closes at 5 PM."
    )
    assert persona_prompt(persona, {}) == constant
    assert persona_prompt(persona, {"customer": "Ada"}) == f"{constant} The customer is Ada."


def test_prompt_without_an_organisation_is_the_role_alone() -> None:
    role = {"voice": "NATM0", "role": "You are a wise and friendly teacher."}
    assert persona_prompt(Persona.model_validate(role), {}) == "You are a wise and friendly teacher."
    named = Persona.model_validate({**role, "name": "Ida"})
    assert persona_prompt(named, {}) == "You are a wise and friendly teacher. Your name is Ida."


def test_prompt_carries_the_emergency_line() -> None:
    persona = Persona.model_validate(
        {"voice": "NATM0", "role": "You help", "emergencies": [{"phrases": ["chest pain"], "say": "Dial 911."}]}
    )
    assert persona_prompt(persona, {}) == "You help. If the caller mentions chest pain, say at once: Dial 911."


def test_request_carries_script_and_defaults(folder: Folder) -> None:
    text = BANK + "disclosure: This call is recorded.\nsampling: {temperature: 0, top_k: 50}\n"
    persona = load_personas(folder(bank=text))["bank"]
    request = session_request(persona, "call-1", {"branch": "Elm Street", "unheard_of": "x"}, 7)
    assert request.greeting == "This call is recorded. This is Sanni."
    assert (request.call_id, request.voice) == ("call-1", "NATF2")
    assert (request.sampling.temperature, request.sampling.text_temperature) == (0, 0.7)
    assert (request.sampling.top_k, request.sampling.seed) == (50, 7)
    declined, confirmed = request.script.answers
    assert (declined.say, declined.needs) == ("Thank you, {caller}. Was it you?", ("caller",))
    assert (confirmed.say, confirmed.after) == ("I have noted that for Elm Street.", ("declined",))
    assert request.script.questions[0].kind == "name"
    assert request.script.person == "desk"
    assert request.script.unknown == Script().unknown
    assert decode_open(encode_open(request)) == request


def test_the_consent_line_comes_before_all_else(folder: Folder) -> None:
    recording = "record: true\nrecording: {format: opus, consent: 'This call is recorded by {branch}.'}\n"
    persona = load_personas(folder(bank=BANK + "disclosure: I am a machine.\n" + recording))["bank"]
    assert (persona.recording.format, persona.retention.audio_days) == ("opus", None)
    line = consent_line(persona, {"branch": "Elm Street"})
    assert line == "This call is recorded by Elm Street."
    request = session_request(persona, "c", {"branch": "Elm Street"}, 0)
    assert request.greeting == f"{line} I am a machine. This is Sanni."
    assert request.notice == f"{line} I am a machine."
    assert request.clip == f"bank-{persona.version}", "as `personas clip` names it"
    again = session_request(persona, "c", {"branch": "Elm Street"}, 0, came_back=True)
    assert again.greeting == f"{request.notice} {UNREACHED}"
    assert consent_line(load_personas(folder(bank=BANK))["bank"], {}) == ""


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("recording: {format: opus}", "recording.format: nothing is recorded; add `record: true`"),
        ("recording: {format: mp3}", "recording.format: "),
        ("recording: {consent: Press 1.}", "recording.consent: must not hold digits"),
        ("recording: {consent: 'Hello {stranger}.'}", "recording.consent: there is no variable {stranger}"),
        ("retention: {audio_days: 0}", "retention.audio_days: "),
        ("retention: {audio_days: 31, record_days: 30}", "retention.audio_days: the whole record goes after 30 days"),
        ("retention: {text_days: 31, record_days: 30}", "retention.text_days: the whole record goes after 30 days"),
    ],
)
def test_recording_and_retention_that_make_no_sense(folder: Folder, more: str, says: str) -> None:
    with pytest.raises(PersonaInvalid) as caught:
        load_personas(folder(bank=f"{BANK}{more}\n"))
    (problem,) = caught.value.problems
    assert says in problem


def test_nobody_is_offered_where_there_is_nobody(folder: Folder) -> None:
    persona = load_personas(folder(bank=changed("  person: desk\n", "")))["bank"]
    assert "person" not in session_request(persona, "c", {}, 0).script.unknown


def test_emergencies_are_urgent_answers() -> None:
    emergency = {"phrases": ["chest pain", "can't breathe"], "say": "Dial 911."}
    persona = Persona.model_validate({"voice": "NATM0", "role": "You help.", "emergencies": [emergency]})
    (answer,) = session_request(persona, "c", {}, 0).script.answers
    assert (answer.id, answer.urgent, answer.when) == ("emergency", True, ("chest pain", "can't breathe"))


def test_a_reload_with_a_problem_changes_nothing(folder: Folder) -> None:
    root = folder(bank=BANK, routing="default: {persona: bank}")
    store = PersonaStore(root)
    before = store.personas["bank"]
    folder(bank=changed("NATF2", "NATF9"))
    assert store.reload()[0].startswith(f"{root}/bank.yaml:5: voice: ")
    assert store.personas["bank"] is before
    folder(bank=BANK, routing="default: {persona: gone}")
    assert store.reload() == [f"{root}/routing.yaml:1: default.persona: there is no persona gone; known: bank"]
    assert store.routing.spec.default.persona == "bank"
    folder(bank=changed("NATF2", "VARM4"), routing="default: {persona: bank}")
    assert store.reload() == []
    assert store.personas["bank"].voice == "VARM4"
    assert store.personas["bank"].version != before.version


def test_a_store_does_not_start_with_an_invalid_set(folder: Folder) -> None:
    with pytest.raises(PersonaInvalid, match=r"routing.yaml:1: cannot be read: No such file"):
        PersonaStore(folder(bank=BANK))


def test_an_invalid_personas_route_is_not_a_second_problem(folder: Folder) -> None:
    root = folder(bank=changed("NATF2", "NATF9"), routing="default: {persona: bank}")
    assert [problem.split(": ")[1] for problem in check_personas(root)] == ["voice"]


def test_check_takes_one_file_or_a_folder(folder: Folder) -> None:
    root = folder(bank=BANK, bad="name: x\n", routing="default: {persona: bank}")
    assert check_personas(root / "bank.yaml") == []
    assert {problem.split(":")[0] for problem in check_personas(root)} == {f"{root}/bad.yaml"}
    assert "cannot be read" in check_personas(root / "none.yaml")[0]
