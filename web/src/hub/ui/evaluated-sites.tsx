import { Text } from "@mantine/core";

import { figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Rows } from "../../shared/ui/table";
import type { EvaluationView } from "../api/schema";
import { partsOf } from "../model/evaluated";

/** What each site has told: of its whole hold-out, of groups of it, and against a model of its own. */
export function BySite({ found }: { found: EvaluationView }) {
  const { say, language } = useText();
  const rows = partsOf(found);
  if (rows.length === 0) return null;
  return (
    <>
      <Text fw={560}>{say("evaluation.by_site")}</Text>
      <Rows compact label={say("evaluation.by_site")} rows={rows} id={(row) => row.id} columns={[
        { head: say("field.site"), cell: (row) => row.site },
        { head: say("evaluation.of"), wide: true, cell: (row) => (row.group === "" ? say(`evaluation.part.${row.part}`) : row.group) },
        { head: say("draft.metric"), cell: (row) => row.metric },
        { head: say("evaluation.value"), right: true, cell: (row) => figure(row.measure.value, language, 3) },
        { head: say("evaluation.interval"), right: true, cell: (row) => `${figure(row.low, language, 3)} – ${figure(row.high, language, 3)}` },
        { head: say("job.records"), right: true, cell: (row) => figure(row.measure.records, language) },
      ]} />
    </>
  );
}
