"""Secure aggregation: the hub learns the sum of the sites' updates and of no part of them.

A pure protocol: messages in, messages out, randomness an argument, no clock, no network, no
disk. What a node knows between two messages is a `Member`, a frozen record that the node
stores **before** it sends the message that belongs to it.

    node (privacy.member)                     hub (privacy.collector)
    join                      -- Keys -->     check_keys
    share                    <-- Roster --    roster
                              -- Shares -->   check_shares
    receive                  <-- Inbox --     inboxes
    spend, masker             -- update -->   (sums the updates as they come)
    consent                  <-- Survivors -- survivors
                              -- Consent -->  check_consent
    unmask                   <-- Consents --  consents
                              -- Unmask -->   check_unmask
                                              unmasker

With x_i the update of site i, written as integers of a ring (privacy.ring), and PRG the
keystream of a seed (privacy.streams), site i sends

    y_i = x_i + PRG(b_i) + sum over neighbours j > i of PRG(s_ij) - sum over j < i of PRG(s_ij).

s_ij is what the mask keys of i and j agree on: it vanishes from the sum when both updates are
in it. b_i is the site's own seed: it keeps y_i hidden even from somebody who learns all s_ij.
Both b_i and the mask key are shared (privacy.shamir) among the site's neighbourhood. Of a
survivor the neighbourhood gives out b_i, of a site that dropped out its mask key, of none
both. Which sites are survivors is signed by more than two thirds of all sites first, and
nobody signs twice.

Sources: Bonawitz et al. 2017, Practical Secure Aggregation for Privacy-Preserving Machine
Learning, figure 4 (with the consistency check against an active server); Bell et al. 2020.
docs/explanation/secure-aggregation.md tells it in plain words, with what it does not do.
"""

from consilia.privacy.collector import (
    Parties,
    Unmasker,
    check_consent,
    check_keys,
    check_shares,
    check_unmask,
    consents,
    inboxes,
    roster,
    survivors,
    unmasker,
)
from consilia.privacy.graph import threshold
from consilia.privacy.member import (
    Masker,
    Member,
    consent,
    join,
    masker,
    receive,
    share,
    spend,
    unmask,
)

__all__ = [
    "Masker",
    "Member",
    "Parties",
    "Unmasker",
    "check_consent",
    "check_keys",
    "check_shares",
    "check_unmask",
    "consent",
    "consents",
    "inboxes",
    "join",
    "masker",
    "receive",
    "roster",
    "share",
    "spend",
    "survivors",
    "threshold",
    "unmask",
    "unmasker",
]
