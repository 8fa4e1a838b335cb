import { Group, Stack, Text } from "@mantine/core";

import { figure, percent } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Rows } from "../../shared/ui/table";
import type { CalibrationBin, EvaluationView } from "../api/schema";
import { path } from "../model/scale";

const SIZE = 220;
const EDGE = 34;
const MOST_SITES = 8;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2", "6 2 1 2"];
type Bins = readonly (readonly [site: string, bins: readonly CalibrationBin[]])[];

const across = (share: number) => EDGE + share * (SIZE - EDGE - 10);
const up = (share: number) => SIZE - EDGE - share * (SIZE - EDGE - 10);

function Drawing({ sites }: { sites: Bins }) {
  const { say, language } = useText();
  const line = (index: number) => ({ stroke: `var(--s${index})`, strokeDasharray: DASHES[index] });
  return (
    <Group align="center" gap="lg">
      <svg className="chart" style={{ maxWidth: 340 }} viewBox={`0 0 ${SIZE} ${SIZE}`} role="img" aria-label={say("calibration.label", { count: sites.length })}>
        {[0, 0.5, 1].map((share) => (
          <g key={share}>
            <line className="grid" x1={across(0)} x2={across(1)} y1={up(share)} y2={up(share)} />
            <text x={EDGE - 5} y={up(share) + 4} textAnchor="end">{percent(share, language)}</text>
            <text x={across(share)} y={SIZE - EDGE + 15} textAnchor={share === 1 ? "end" : "middle"}>{percent(share, language)}</text>
          </g>
        ))}
        <line className="cursor" x1={across(0)} x2={across(1)} y1={up(0)} y2={up(1)} />
        {sites.map(([site, bins], index) => (
          <g key={site}>
            <path className="line" d={path(bins.map((bin) => [bin.predicted, bin.observed] as const), across, up)} {...line(index)} />
            {bins.map((bin) => <circle key={bin.low} cx={across(bin.predicted)} cy={up(bin.observed)} r={3} fill={`var(--s${index})`} />)}
          </g>
        ))}
      </svg>
      <Stack gap={4} component="ul" m={0} p={0} style={{ listStyle: "none" }}>
        {sites.map(([site], index) => (
          <Group key={site} component="li" gap={6} wrap="nowrap">
            <svg className="swatch" viewBox="0 0 22 8" aria-hidden><line className="line" x1={0} x2={22} y1={4} y2={4} strokeWidth={2.5} {...line(index)} /></svg>
            <Text size="xs">{site}</Text>
          </Group>
        ))}
        <Text component="li" size="xs" className="quiet">{say("calibration.diagonal")}</Text>
      </Stack>
    </Group>
  );
}

/** How often what was predicted with some probability came true, at each site that told it. */
export function Calibration({ found }: { found: EvaluationView }) {
  const { say, language } = useText();
  const sites: Bins = Object.entries(found.sites)
    .map(([site, one]) => [site, one.calibration ?? []] as const)
    .sort(([a], [b]) => a.localeCompare(b));
  const told = [[say("evaluation.pooled"), found.calibration] as const, ...sites].filter(([, bins]) => bins.length > 0);
  if (told.length === 0) return null;
  const rows = told.flatMap(([site, bins]) => bins.map((bin) => ({ site, bin })));
  return (
    <Stack gap="xs">
      <Text fw={560}>{say("calibration.title")}</Text>
      <Drawing sites={told.slice(0, MOST_SITES)} />
      <details>
        <summary><Text span size="xs" className="quiet">{say("chart.table")}</Text></summary>
        <Rows compact label={say("calibration.title")} rows={rows} id={(row) => `${row.site} ${row.bin.low}`} columns={[
          { head: say("field.site"), cell: (row) => row.site },
          { head: say("calibration.bin"), cell: (row) => `${percent(row.bin.low, language)} – ${percent(row.bin.high, language)}` },
          { head: say("calibration.predicted"), right: true, cell: (row) => percent(row.bin.predicted, language) },
          { head: say("calibration.observed"), right: true, cell: (row) => percent(row.bin.observed, language) },
          { head: say("job.records"), right: true, cell: (row) => figure(row.bin.records, language) },
        ]} />
      </details>
    </Stack>
  );
}
