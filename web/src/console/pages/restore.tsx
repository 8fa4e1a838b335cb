import { Group, Stack, Text } from "@mantine/core";

import { moment } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Confirm } from "../../shared/ui/confirm";
import { Section } from "../../shared/ui/page";
import type { LedgerView } from "../api/schema";
import { useChange, useClient, useMay, useSession } from "../api/use";

/** A held ledger: the node was put back, and people decide whether it goes on without what is missing. */
export function Restore({ ledger }: { ledger: LedgerView }) {
  const { say, language } = useText();
  const client = useClient();
  const me = useSession().name;
  const may = useMay("data_manager");
  const accept = useChange((reason: string) => client.acceptRestore({ reason }));
  const withdraw = useChange(() => client.withdrawRestore());
  if (!ledger.held) return null;
  const asked = ledger.restore;
  const own = asked?.by === me || asked?.by === `user:${me}`;
  return (
    <Section title={say("restore.title")} actions={may && (
      <Group gap="xs">
        {!own && (
          <Confirm danger label={say(asked ? "restore.agree" : "restore.accept")} title={say(asked ? "restore.agree" : "restore.accept")}
            consequence={say(ledger.two_people && !asked ? "restore.consequence.two" : "restore.consequence")} reason="required" act={accept.mutateAsync} />
        )}
        {asked && <Confirm label={say("ledger.withdraw")} title={say("ledger.withdraw")} consequence={say("restore.withdraw.consequence")} act={() => withdraw.mutateAsync(undefined)} />}
      </Group>
    )}>
      <Stack gap="sm">
        <Text size="sm">{ledger.held}</Text>
        {asked && <Text size="sm">{say("restore.waits", { by: asked.by, at: moment(asked.at, language), reason: asked.reason })}</Text>}
      </Stack>
    </Section>
  );
}
