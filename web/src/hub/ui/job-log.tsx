import { ScrollArea } from "@mantine/core";

import { causeText } from "../../shared/text/cause";
import { useText } from "../../shared/text/language";
import { Empty } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { Live } from "../model/happenings";

/** What happened, newest first, as the hub journalled it. */
export function Log({ live }: { live: Live }) {
  const { say, knows, language } = useText();
  const words = useText();
  if (live.log.length === 0) return <Empty title={say("log.none")} />;
  const at = (seconds: number) => new Date(seconds * 1000).toLocaleTimeString(language);
  return (
    <ScrollArea h={420} viewportProps={{ tabIndex: 0, "aria-label": say("job.tab.log"), role: "group" }}>
      <Rows compact label={say("job.tab.log")} rows={live.log} id={(row) => row.seq} columns={[
        { head: say("field.when"), cell: (row) => <time dateTime={new Date(row.at * 1000).toISOString()}>{at(row.at)}</time> },
        { head: say("job.round"), right: true, cell: (row) => row.round ?? "" },
        { head: say("log.what"), cell: (row) => (knows(`event.${row.type}`) ? say(`event.${row.type}`) : row.type) },
        { head: say("field.site"), cell: (row) => row.site },
        { head: say("field.detail"), wide: true, cell: (row) => causeText(row.detail, words) },
      ]} />
    </ScrollArea>
  );
}
