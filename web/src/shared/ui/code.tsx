import { Fragment } from "react";

import type { DiffRow } from "../text/diff";
import { folded } from "../text/diff";
import { useText } from "../text/language";

export interface Remark {
  readonly line: number;
  readonly text: string;
  readonly grave: boolean; // coloured; what is only told stays plain
}

/** Source with line numbers; remarks stand below the line they are about. */
export function Source(props: { label: string; text: string; remarks?: readonly Remark[] }) {
  const lines = props.text.replace(/\n$/, "").split("\n");
  return (
    <div className="code" tabIndex={0} role="region" aria-label={props.label}>
      <table>
        <tbody>
          {lines.map((line, index) => {
            const remarks = (props.remarks ?? []).filter((remark) => remark.line === index + 1);
            return (
              <Fragment key={index}>
                <tr className={remarks.some((remark) => remark.grave) ? "marked" : undefined} id={`line-${index + 1}`}>
                  <td className="number">{index + 1}</td>
                  <td>{line}</td>
                </tr>
                {remarks.map((remark) => (
                  <tr className={remark.grave ? "note marked" : "note"} key={remark.text}>
                    <td />
                    <td className={remark.grave ? undefined : "quiet"}>{remark.grave && <strong>⚑ </strong>}{remark.text}</td>
                  </tr>
                ))}
              </Fragment>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

const LEFT = { same: "", changed: "removed", removed: "removed", added: "gap" } as const;
const RIGHT = { same: "", changed: "added", added: "added", removed: "gap" } as const;

/** Two versions beside each other; long unchanged stretches are folded away. */
export function SideBySide({ label, rows }: { label: string; rows: readonly DiffRow[] }) {
  const { say } = useText();
  return (
    <div className="code beside" tabIndex={0} role="region" aria-label={label}>
      <table>
        <colgroup><col className="number" /><col /><col className="number" /><col /></colgroup>
        <tbody>
          {folded(rows, 4).map((part, index) =>
            part.kind === "fold" ? (
              <tr key={index}>
                <td colSpan={4} className="gap quiet">{say("diff.folded", { count: part.count })}</td>
              </tr>
            ) : (
              <tr key={index}>
                <td className="number">{part.row.left_line ?? ""}</td>
                <td className={LEFT[part.row.kind]}>{part.row.left ?? ""}</td>
                <td className="number">{part.row.right_line ?? ""}</td>
                <td className={RIGHT[part.row.kind]}>{part.row.right ?? ""}</td>
              </tr>
            ),
          )}
        </tbody>
      </table>
    </div>
  );
}
