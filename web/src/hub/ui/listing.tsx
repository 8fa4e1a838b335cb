import { useInfiniteQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";

import { More } from "../../shared/ui/more";
import { Failure, Waiting } from "../../shared/ui/states";
import { Rows, type Column } from "../../shared/ui/table";
import type { Listed } from "../api/client";

const FRESH_PAGES = 3; // somebody who reads further down is not moved, and the hub not asked for all again

/** A list of the hub, a page at a time: it may be a hundred thousand long. */
export function Listing<Row>(props: {
  queryKey: readonly unknown[];
  load: (cursor: string | null) => Promise<Listed<Row>>;
  label: string;
  columns: readonly Column<Row>[];
  id: (row: Row) => string | number;
  empty: ReactNode;
  compact?: boolean;
  refresh?: number;
}) {
  const pages = useInfiniteQuery({
    queryKey: props.queryKey,
    queryFn: ({ pageParam }) => props.load(pageParam),
    initialPageParam: null as string | null,
    getNextPageParam: (last) => last.next,
    refetchInterval: (query) => ((query.state.data?.pages.length ?? 0) <= FRESH_PAGES && props.refresh) || false,
  });
  if (pages.isPending) return <div style={{ padding: "1.2rem" }}><Waiting lines={6} /></div>;
  const failure = pages.isError && <div style={{ padding: "1.2rem" }}><Failure error={pages.error} retry={() => void pages.refetch()} /></div>;
  if (!pages.data) return failure;
  const rows = pages.data.pages.flatMap((page) => page.items);
  if (rows.length === 0) return <>{failure}{props.empty}</>;
  return (
    <>
      {failure}
      <Rows label={props.label} rows={rows} columns={props.columns} id={props.id} compact={props.compact ?? false} />
      <More shown={pages.hasNextPage} busy={pages.isFetchingNextPage} load={() => void pages.fetchNextPage()} />
    </>
  );
}
