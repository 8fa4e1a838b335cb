"""Pure decisions: ids, weights, rounds, selection, the audit chain. numpy and stdlib only."""
