"""A persona's file of the tests."""

from __future__ import annotations

BANK = """\
name: Sanni Virtanen
organisation:
  name: First Neuron Bank
  kind: bank
voice: NATF2
role: Verify the customer's name
facts:
  - "The customer is {customer}"
  - The branch closes at 5 PM.
greeting: This is Sanni.
script:
  person: desk
  questions:
    - name: caller
      kind: name
      ask: May I have your name?
  answers:
    - id: declined
      when: [My card was declined]
      needs: [caller]
      say: "Thank you, {caller}. Was it you?"
    - id: yes
      after: [declined]
      when: ["Yes"]
      say: I have noted that for {branch}.
transfers:
  desk: "+12065550101"
variables:
  customer: ""
  branch: the main branch
"""
