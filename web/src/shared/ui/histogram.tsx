import { Group, Stack, Text } from "@mantine/core";

import { figure, percent } from "../text/format";
import { barsOf, type Bin } from "../text/histogram";
import { useText } from "../text/language";

const MOST_BARS = 36;
const MOST_LEVELS = 6;

/** How numbers are spread; the ends of the axis are written below. */
export function Histogram(props: { bins: readonly Bin[]; label: string; written?: (value: number) => string }) {
  const { language } = useText();
  const { bins, label } = props;
  const written = props.written ?? ((value: number) => figure(value, language, 3));
  const bars = barsOf(bins, MOST_BARS);
  const first = bars[0];
  const last = bars.at(-1);
  if (!first || !last) return null;
  return (
    <Stack gap={2}>
      <svg viewBox="0 0 100 40" preserveAspectRatio="none" width="100%" height={72} role="img" aria-label={label}>
        {bars.map((bar) => (
          <rect key={bar.low} className="bar-value" x={bar.x * 100 + 0.2} width={Math.max(0.5, bar.width * 100 - 0.4)} y={39 - bar.height * 38} height={bar.height * 38} rx={0.4}>
            <title>{`${written(bar.low)} – ${written(bar.high)}: ${figure(bar.records, language)}`}</title>
          </rect>
        ))}
        <line className="axis" x1={0} x2={100} y1={39.5} y2={39.5} />
      </svg>
      <Group justify="space-between">
        <Text size="xs" className="quiet figures">{written(first.low)}</Text>
        <Text size="xs" className="quiet figures">{written(last.high)}</Text>
      </Group>
    </Stack>
  );
}

/** The most frequent levels with their shares. */
export function Levels(props: { levels: readonly { readonly label: string; readonly records: number }[]; total: number }) {
  const { say, language } = useText();
  const shown = props.levels.slice(0, MOST_LEVELS);
  const rest = props.levels.length - shown.length;
  return (
    <Stack gap={6}>
      {shown.map((level) => (
        <div key={level.label}>
          <Group justify="space-between" wrap="nowrap" gap="xs">
            <Text size="xs" truncate>{level.label}</Text>
            <Text size="xs" className="quiet figures">{percent(props.total > 0 ? level.records / props.total : 0, language)}</Text>
          </Group>
          <svg viewBox="0 0 100 4" preserveAspectRatio="none" width="100%" height={6} aria-hidden>
            <rect className="bar-value" width={props.total > 0 ? (level.records / props.total) * 100 : 0} height={4} rx={0.5} />
          </svg>
        </div>
      ))}
      {rest > 0 && <Text size="xs" className="quiet">{say("profile.more", { count: rest })}</Text>}
    </Stack>
  );
}
