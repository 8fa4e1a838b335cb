import { Group, Stack, Table, Text } from "@mantine/core";
import { useState, type KeyboardEvent, type PointerEvent } from "react";

import { figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { path, span, thinned, ticks, type Series } from "../model/scale";

const [WIDTH, HEIGHT] = [480, 200];
const [LEFT, RIGHT, TOP, BOTTOM] = [54, 12, 10, 26];
const MOST_POINTS = 400;
const MOST_SERIES = 8;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2", "6 2 1 2"];

function stroke(index: number) {
  return { stroke: `var(--s${index % MOST_SERIES})`, strokeDasharray: DASHES[index % MOST_SERIES] };
}

/** Names and their lines; the value at the chosen x where there is one. */
function Legend({ series, at }: { series: readonly Series[]; at: number | null }) {
  const { language } = useText();
  return (
    <Group gap="md" component="ul" m={0} p={0} style={{ listStyle: "none" }}>
      {series.map(({ name, points }, index) => {
        const value = at === null ? points.at(-1)?.[1] : points.find(([x]) => x === at)?.[1];
        return (
          <Group key={name} component="li" gap={6} wrap="nowrap" maw="100%">
            <svg className="swatch" viewBox="0 0 22 8" aria-hidden><line className="line" x1={0} x2={22} y1={4} y2={4} strokeWidth={2.5} {...stroke(index)} /></svg>
            <Text size="xs" style={{ overflowWrap: "anywhere" }}>{name}</Text>
            <Text size="xs" className="quiet figures">{value === undefined ? "–" : figure(value, language)}</Text>
          </Group>
        );
      })}
    </Group>
  );
}

/** The same figures as a table, for who cannot or does not want to see the drawing. */
function AsTable({ series, xLabel, label }: { series: readonly Series[]; xLabel: string; label: string }) {
  const { say, language } = useText();
  const [open, setOpen] = useState(false);
  const xs = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary><Text span size="xs" className="quiet">{say("chart.table")}</Text></summary>
      {open && (
        <Table.ScrollContainer minWidth={0} mah={260} scrollAreaProps={{ viewportProps: { tabIndex: 0, "aria-label": label, role: "region" } }}>
          <Table fz="xs" verticalSpacing={3} aria-label={label}>
            <Table.Thead>
              <Table.Tr><Table.Th>{xLabel}</Table.Th>{series.map(({ name }) => <Table.Th key={name} ta="right">{name}</Table.Th>)}</Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {xs.map((x) => (
                <Table.Tr key={x}>
                  <Table.Td>{figure(x, language)}</Table.Td>
                  {series.map(({ name, points }) => {
                    const value = points.find(([a]) => a === x)?.[1];
                    return <Table.Td key={name} ta="right" className="figures">{value === undefined ? "–" : figure(value, language)}</Table.Td>;
                  })}
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
    </details>
  );
}

function Drawing(props: { label: string; series: readonly Series[]; at: number | null; choose: (x: number | null) => void; written: (value: number) => string }) {
  const { say, language } = useText();
  const { series, at, choose, written } = props;
  const xs = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
  const [x0, x1] = span(xs);
  const [low, high] = span(series.flatMap(({ points }) => points.map(([, y]) => y)));
  const x = (value: number) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const y = (value: number) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const step = (by: number) => {
    const index = at === null ? xs.length - 1 : xs.indexOf(at) + by;
    choose(xs[Math.max(0, Math.min(xs.length - 1, index))] ?? null);
  };
  function key(event: KeyboardEvent) {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  }
  function point(event: PointerEvent<SVGSVGElement>) {
    const box = event.currentTarget.getBoundingClientRect();
    const wanted = x0 + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (x1 - x0);
    choose(xs.reduce<number | null>((best, one) => (best === null || Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best), null));
  }
  return (
    <svg className="chart" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" tabIndex={0} onKeyDown={key} onPointerMove={point}
      onPointerLeave={() => choose(null)} aria-label={say("chart.label", { label: props.label, count: series.length })}>
      {ticks(low, high, 4).map((value) => (
        <g key={value}>
          <line className="grid" x1={LEFT} x2={WIDTH - RIGHT} y1={y(value)} y2={y(value)} />
          <text x={LEFT - 6} y={y(value) + 4} textAnchor="end">{written(value)}</text>
        </g>
      ))}
      {ticks(x0, x1, 6).filter(Number.isInteger).map((value) => (
        <text key={value} x={x(value)} y={HEIGHT - 8} textAnchor="middle">{figure(value, language)}</text>
      ))}
      {at !== null && <line className="cursor" x1={x(at)} x2={x(at)} y1={TOP} y2={HEIGHT - BOTTOM} />}
      {series.map(({ name, points }, index) => (
        <path key={name} className="line" d={path(thinned(points, MOST_POINTS), x, y)} {...stroke(index)} />
      ))}
      {series.flatMap(({ name, points }, index) =>
        points.filter(([a]) => points.length === 1 || a === at).map(([a, b]) => (
          <circle key={`${name}-${a}`} cx={x(a)} cy={y(b)} r={3.5} fill={`var(--s${index % MOST_SERIES})`} />
        )),
      )}
    </svg>
  );
}

/** Lines over rounds. Pointer or arrow keys choose a round; the legend then tells its values. */
export function Chart(props: { label: string; xLabel: string; series: readonly Series[]; written?: (value: number) => string }) {
  const { say, language } = useText();
  const [at, choose] = useState<number | null>(null);
  const shown = props.series.filter(({ points }) => points.length > 0).slice(0, MOST_SERIES);
  const rest = props.series.length - shown.length;
  if (shown.length === 0) return <Text size="sm" className="quiet">{say("chart.none")}</Text>;
  return (
    <Stack gap={6}>
      <Drawing label={props.label} series={shown} at={at} choose={choose} written={props.written ?? ((value) => figure(value, language, 3))} />
      <Group justify="space-between" align="flex-start" gap="xs">
        <Legend series={shown} at={at} />
        <Text size="xs" className="quiet figures">{at === null ? say("chart.last") : `${props.xLabel} ${figure(at, language)}`}</Text>
      </Group>
      {rest > 0 && <Text size="xs" className="quiet">{say("chart.more", { count: rest })}</Text>}
      <AsTable series={shown} xLabel={props.xLabel} label={props.label} />
    </Stack>
  );
}
