"""Conversations as text: what is said to what was heard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.rehearsal.dialogue import Dialogue
from model.rehearsal.matcher import LexicalMatcher, Matcher
from model.rehearsal.matcher_minilm import MiniLmMatcher
from model.wire import Answer, Script, SessionRequest
from tests.model.rehearsal.conversation import DECLINED, GOODBYE, TO_PERSON, Call, read

from .confusion import BANK, CLINIC, HOTEL

Talk = Callable[..., "Call"]


@pytest.fixture
def talk(matcher: Matcher) -> Talk:
    def start(script: Script = BANK, prompt: str = "") -> Call:
        return Call(
            Dialogue(
                SessionRequest("call", greeting="This is Sanni. How can I help?", script=script, prompt=prompt), matcher
            )
        )

    return start


NAME_ASKED = "I'm sorry about that. May I have your full name, please?"
STOPPED = "Thank you, David Cohen. We stopped a charge of twelve hundred dollars in Miami. Was that you?"


def test_greets_first(talk: Talk) -> None:
    assert talk().greeting == "This is Sanni. How can I help?"


def test_identity_first_then_what_was_asked(talk: Talk) -> None:
    call = talk()
    assert call.say(DECLINED) == NAME_ASKED
    assert call.say("My name is David Cohen.") == STOPPED
    confirmed = call.say("Yes, that was me. Please approve the transaction.")
    assert confirmed.startswith("Thank you, I've noted that. I can't approve it myself.")
    assert call.say("Okay, thank you. Goodbye.") == GOODBYE


def test_denied(talk: Talk) -> None:
    reply = "Then let's keep your account safe. I am connecting you to the card team. <transfer cards>"
    assert talk().say(DECLINED, "David Cohen", "No, that wasn't me.") == reply
    assert talk().say(DECLINED, "David Cohen", "No.") == reply


@pytest.mark.parametrize("agreed", ["Yes.", "Yeah.", "Mm-hm.", "Yes, it was."])
def test_a_bare_yes_replies_to_the_last_answer(talk: Talk, agreed: str) -> None:
    assert "noted that" in talk().say(DECLINED, "David Cohen", agreed)


def test_a_name_given_early_is_not_asked_for(talk: Talk) -> None:
    assert talk().say("This is David Cohen. My card was declined.") == STOPPED
    call = talk()
    assert call.say("My name is David Cohen.") == "Thank you, David. How can I help you?"
    assert call.say("My card was declined") == STOPPED


def test_going_on_about_it_instead_of_the_name_asks_again(talk: Talk) -> None:
    call = talk()
    call.say("My card was declined.")
    assert call.say("It was twelve hundred dollars.").endswith("May I have your full name, please?")
    assert call.say("David Cohen.") == STOPPED


def test_another_question_is_answered_before_the_name_is_asked_again(talk: Talk) -> None:
    call = talk()
    call.say("My card was declined.")
    hours = call.say("What are your opening hours?")
    assert hours.startswith("We are open from nine AM to five PM")
    assert hours.endswith("May I have your full name, please?")
    assert call.say("It's David Cohen") == STOPPED


def test_two_questions_that_need_the_same_are_both_answered(talk: Talk) -> None:
    call = talk()
    call.say("What is my balance?", "My card was declined")
    assert call.say("David Cohen").endswith("What are the last four digits of the card?")
    reply = call.say("4521")
    assert "ending in four five two one" in reply
    assert reply.endswith("Was that you?")


def test_a_reply_of_which_nothing_was_heard_is_taken_back(talk: Talk) -> None:
    call = talk()
    first, whole = DECLINED.partition(" It was")[0], DECLINED
    call.say(first)
    call.interrupted(after="")
    assert call.say(whole) == NAME_ASKED
    call.interrupted(after="")
    assert "first I need" not in call.say(whole).lower()
    assert call.say("My name is David Cohen.") == STOPPED
    call.interrupted(after="")
    assert call.say("My name is David Cohen. Yes.").startswith("Thank you, David Cohen.")


def test_why_the_name(talk: Talk) -> None:
    reply = talk().say("My card was declined.", "Why do you need that?")
    assert reply == "I need it to find the right answer for you. May I have your full name, please?"


def test_refusing_the_name_offers_a_person(talk: Talk) -> None:
    assert talk().say("My card was declined.", "No.") == (
        "All right. Without it I can't help with that. Would you like to speak to a person?"
    )
    assert talk().say("My card was declined.", "I'd rather not say.", "Yes, please.") == TO_PERSON


def test_numbers_are_read_back_digit_by_digit(talk: Talk) -> None:
    call = talk()
    call.say("I want to dispute a charge")
    assert "reference four four seven, one one two." in call.say("It's 447-112.")


def test_a_number_read_back_can_be_corrected(talk: Talk) -> None:
    call = talk(
        replace(
            BANK,
            answers=(
                *BANK.answers,
                Answer("status", "Thank you, {caller_name}.", ("case status",), ("reference", "caller_name")),
            ),
        )
    )
    call.say("case status")
    assert call.say("4 4 7 1").startswith("Thank you. I have four four seven one. ")
    assert call.say("No, it's 4 4 7 2").startswith("Thank you. I have four four seven two.")
    assert call.say("That's wrong.").endswith("What is the reference number?")
    assert call.say("four four seven three").startswith("Thank you. I have four four seven three.")


def test_a_number_nobody_asked_for_is_read_back(talk: Talk) -> None:
    reply = talk().say("5 5 5 1 2 3 4")
    assert reply.startswith("I heard five five five, one two three four, but I don't know")


def test_a_secret_is_not_said_aloud(talk: Talk) -> None:
    reply = talk().say("The security code is seven three seven.")
    assert "seven" not in reply


@pytest.mark.parametrize(
    "question", ["What's the weather like in Seattle?", "Do you offer mortgages?", "Tell me a joke"]
)
def test_says_that_it_does_not_know_and_offers_a_person(talk: Talk, question: str) -> None:
    unknown = "I'm sorry, I don't know that. Would you like to speak to a person?"
    assert talk().say(question) == unknown
    assert talk().say(question, "Yes, please.") == TO_PERSON
    assert talk().say(question, "No, thank you.") == "All right. What else can I help you with?"
    assert talk().say(question, "No, thank you.", "Nothing, bye.") == GOODBYE


def test_offers_nobody_where_there_is_nobody(talk: Talk) -> None:
    call = talk(replace(BANK, person=""))
    assert call.say("Tell me a joke") == "I'm sorry, I don't know that. What else can I help you with?"
    assert "person" not in call.say("", "", "Tell me another joke", "")
    assert call.say("I want to talk to a real person.").startswith("I'm sorry, nobody is available")


@pytest.mark.parametrize(
    "wish",
    [
        "Wait, stop. I want to talk to a real person.",
        "Can I speak to a representative?",
        "Agent.",
        "Please connect me to someone.",
        "I don't want to talk to a machine.",
        "I need a human",
    ],
)
def test_a_person_is_a_transfer_at_any_time(talk: Talk, wish: str) -> None:
    assert talk().say(wish) == TO_PERSON
    assert talk().say("My card was declined.", wish) == TO_PERSON


@pytest.mark.parametrize(
    "words",
    ["Okay, thank you. Goodbye.", "Great, thanks, bye.", "Bye.", "Buy.", "Thanks for your help, have a great day!"],
)
def test_goodbye_ends_the_call(talk: Talk, words: str) -> None:
    assert talk().say(words) == GOODBYE
    assert talk().say("My card was declined", words) == GOODBYE


@pytest.mark.parametrize("words", ["No, that is all. Thank you.", "No.", "No, thanks.", "That's all, thank you."])
def test_no_to_anything_else_ends_the_call(talk: Talk, words: str) -> None:
    call = talk()
    assert call.say("What are your opening hours?").endswith("Is there anything else I can help you with?")
    assert call.say(words) == GOODBYE


def test_the_scripts_own_farewell_is_preferred(talk: Talk) -> None:
    call = talk(CLINIC)
    call.say("I need to cancel my appointment", "Anna Lee")
    assert "I'll pass on the cancellation for Anna Lee." in call.say("May 5, 1975")
    assert call.say("No, that is all. Thank you.") == "You're welcome. Take care. Goodbye. <goodbye>"


def test_a_question_in_the_breath_of_goodbye_is_answered(talk: Talk) -> None:
    reply = talk().say("What time does the branch close on Saturday? Thanks, bye.")
    assert reply.startswith("We are open from")
    assert reply.endswith(GOODBYE)


@pytest.mark.parametrize(
    "cry",
    [
        "I have a terrible pain in my chest.",
        "My husband cannot breathe!",
        "I think she's having a stroke, what are your hours?",
        "Hello, he won't stop bleeding",
        "bye, I am going to kill myself",
        "I want to talk to a person, I have chest pain",
    ],
)
def test_emergencies_come_before_everything(talk: Talk, cry: str) -> None:
    line = "This may be an emergency. Please hang up and dial nine one one now."
    assert talk(CLINIC).say(cry) == line
    assert talk(CLINIC).say("I'd like to book an appointment", cry) == line
    assert talk(CLINIC).say("I need a refill of my medication", cry) == line


def test_emergencies_are_understood_in_other_words(minilm: MiniLmMatcher) -> None:
    for before in ("", "I need a refill of my medication", "I'd like to book an appointment"):
        call = Call(Dialogue(SessionRequest("call", script=CLINIC), minilm))
        assert call.say(before, "I can barely breathe").startswith("This may be an emergency.")


@pytest.mark.parametrize("words", ["It is lisinopril, ten milligrams.", "I have a cough", "My blood pressure is high"])
def test_talk_of_medicine_is_no_emergency(talk: Talk, words: str) -> None:
    assert "emergency" not in talk(CLINIC).say(words)


def test_words_are_taken_as_they_were_said(talk: Talk) -> None:
    call = talk(CLINIC)
    assert call.say("Good morning, I need a refill of my medication.").startswith("Which medicine is it")
    assert call.say("It is lisinopril, ten milligrams.").startswith("Thank you. I've noted lisinopril, ten milligrams.")


def test_name_then_date_of_birth(talk: Talk) -> None:
    call = talk(CLINIC)
    assert call.say("I would like to book an appointment for next Tuesday").endswith("What is the patient's full name?")
    assert call.say("Anna Lee") == "Thank you, Anna. And the date of birth, please?"
    beside = call.say("May 5, 1975. Where can I park?")
    assert "Anna Lee, born May fifth, nineteen seventy-five." in beside
    assert "forty River Street" in beside


def test_repeats(talk: Talk) -> None:
    call = talk()
    hours = call.say("What are your opening hours?")
    assert call.say("Can you repeat that?") == hours
    assert call.say("Sorry?") == hours
    assert talk().say("Pardon?") == "This is Sanni. How can I help?"


def test_what_was_not_understood_is_asked_for_again(talk: Talk) -> None:
    call = talk()
    hours = call.say("What are your opening hours?")
    assert call.say("") == "I'm sorry, I didn't catch that. Could you say it again?"
    assert call.say("[BLANK_AUDIO]") == "I'm sorry, I still can't make that out. Would you like to speak to a person?"
    assert call.say("What did you say?") == hours
    assert call.say("", "") != TO_PERSON
    assert call.say("Yes.") == TO_PERSON


def test_after_an_interruption_it_goes_on_where_it_was(talk: Talk) -> None:
    call = talk()
    rest = "The rewards card costs ninety-five dollars a year. A late payment costs up to thirty-five dollars."
    assert call.say("What does the credit card cost?").startswith(f"The standard card has no annual fee. {rest}")
    call.interrupted(after="The standard card has no annual fee. The rewards")
    assert call.say("Mm-hm.").startswith(rest)
    call.interrupted(after="The rewards card")
    assert call.say("Sorry, what does the credit card cost?").startswith(f"As I was saying. {rest}")
    call.interrupted(after="As I was saying. The")
    assert call.say("What are your opening hours?").startswith("We are open")


def test_what_was_heard_to_the_end_is_not_taken_up_again(talk: Talk) -> None:
    call = talk()
    call.say("What does the credit card cost?")
    call.dialogue.spoken("The standard card has", complete=True)
    assert call.say("What does the credit card cost?").startswith("The standard card has no annual fee.")


@pytest.mark.parametrize("hum", ["Mm-hm.", "Uh-huh.", "Um...", "Hmm.", "Okay.", "Right.", "I see."])
def test_a_hum_is_no_question(talk: Talk, hum: str) -> None:
    assert talk().say(hum) == ""
    assert talk().say("What are your opening hours?", hum) == ""
    assert talk().say("My card was declined.", "David Cohen", "Um...") == ""


def test_small_talk_needs_no_script(talk: Talk) -> None:
    prompt = "You work for First Neuron Bank which is a bank and your name is Sanni Virtanen. Information: none."
    call = talk(Script(), prompt=prompt)
    assert call.say("Hello.") == "Hello. How can I help you?"
    assert call.say("Hi, how are you today?").startswith("I'm doing well, thank you.")
    assert call.say("What is your name?").startswith(
        "This is Sanni Virtanen, an automated assistant at First Neuron Bank."
    )
    assert call.say("Am I talking to a real person?").startswith("I'm not a person. I'm an automated assistant")
    assert call.say("Thank you very much.").startswith("You're welcome.")
    assert call.say("Can you hear me?").startswith("Yes, I'm here.")
    assert call.say("I have a question.") == "Please go ahead."
    assert call.say("Hold on a second.") == "Of course, take your time."


def test_silence(talk: Talk) -> None:
    call = talk()
    assert read(call.dialogue.still_there()) == "Are you still there?"
    call.say("Yes, what are your opening hours?")
    assert read(call.dialogue.still_there()) == "Are you still there?"
    assert "say something" in read(call.dialogue.still_there())
    assert read(call.dialogue.still_there()).endswith("Goodbye. <goodbye>")


def test_who_asked_to_wait_is_given_time(talk: Talk) -> None:
    call = talk()
    call.say("Hold on, let me get my card.")
    assert read(call.dialogue.still_there()) == "Take your time, I'm still here."


def test_an_answer_without_examples_takes_any_reply(talk: Talk) -> None:
    script = Script(
        answers=(
            Answer("launch", "Reactor one is melting. What do you do?", ("status report",)),
            Answer("act", "Understood. Ending the exercise.", after=("launch",), then="hangup"),
        )
    )
    assert (
        talk(script).say("status report", "I vent the coolant into space")
        == "Understood. Ending the exercise. <goodbye>"
    )
    assert "don't know" in talk(script).say("I vent the coolant into space")


def test_a_reply_dropped_early_is_remembered(talk: Talk) -> None:
    """The caller interrupts before the first sentence is even fetched to its end."""
    call = talk()
    reply = call.dialogue.reply("My card was declined.")
    next(reply)
    del reply
    call.interrupted(after="I'm sorry about")
    assert call.say("David Cohen") == STOPPED


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(
        st.one_of(st.text(max_size=40), st.sampled_from(["yes", "no", "4111", "David Cohen", "", "what?", "bye"])),
        max_size=6,
    )
)
def test_no_turn_breaks_it(turns: list[str]) -> None:
    for script in (BANK, CLINIC, HOTEL, Script()):
        call = Call(Dialogue(SessionRequest("call", script=script), LexicalMatcher()))
        for turn in turns:
            assert "{" not in call.say(turn) or "{" in turn


# The personas that are shipped
