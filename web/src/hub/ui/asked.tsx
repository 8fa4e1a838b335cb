import { Checkbox, Group, NativeSelect, Stack, Switch } from "@mantine/core";

import { useText } from "../../shared/text/language";
import { AGGREGATIONS, type Asked } from "../model/asked";
import { Pairs } from "./pairs";

/** What an evaluation is to tell besides the metrics: of which sites, in which groups, against what. */
export function AskedFields({ asked, edit, sites }: { asked: Asked; edit: (part: Partial<Asked>) => void; sites: readonly string[] }) {
  const { say } = useText();
  return (
    <Stack>
      {sites.length > 0 && (
        <Checkbox.Group label={say("evaluate.at")} description={say("evaluate.at.hint")} value={[...asked.at]} onChange={(at) => edit({ at })}>
          <Group mt={6} gap="md">{sites.map((site) => <Checkbox key={site} value={site} label={site} />)}</Group>
        </Checkbox.Group>
      )}
      <Pairs label={say("evaluate.subgroups")} hint={say("evaluate.subgroups.hint")} pairs={asked.subgroups} change={(subgroups) => edit({ subgroups })} />
      <NativeSelect label={say("evaluate.aggregation")} description={say("evaluate.aggregation.hint")} value={asked.aggregation}
        data={AGGREGATIONS.map((value) => ({ value, label: say(`evaluate.aggregation.${value || "default"}`) }))}
        onChange={(event) => edit({ aggregation: AGGREGATIONS.find((known) => known === event.currentTarget.value) ?? "" })} />
      <Switch label={say("evaluate.benefit")} description={say("evaluate.benefit.hint")} checked={asked.benefit} onChange={(event) => edit({ benefit: event.currentTarget.checked })} />
    </Stack>
  );
}
