// The cache: how much of what is read lies ready, what each level holds, which keys are hot, and what
// may be done by hand.

import { api, ask } from './api';
import type { Schemas } from './api';
import { Invalidate, LookUp, Warm } from './cache-forms';
import { useLoad } from './data';
import { metrics, METRICS_MS, takeSample } from './metrics';
import { Link, part } from './router';
import { Figure, Meter, Show, Sparkline, Stale, State, Table, View } from './ui';
import { number, percent, size, t, took, wordOf } from './words';

const REFRESH_MS = 2000;

type Stats = Schemas['StatsView'];
type Level = Schemas['LevelView'];
type HotKeys = Schemas['HotKeyList'];

export function Cache() {
  const stats = useLoad(() => ask(api.GET('/api/v1/cache/stats')), [], REFRESH_MS);
  const hot = useLoad(() => ask(api.GET('/api/v1/cache/hot-keys')), [], REFRESH_MS);
  const rates = useLoad(takeSample, [], METRICS_MS);
  const again = () => {
    stats.again();
    hot.again();
  };
  return (
    <View title={t('cache')}>
      {rates.problem && <Stale problem={rates.problem} />}
      <Show of={stats}>
        {(stats) => (
          <>
            <Figures stats={stats} />
            <Levels levels={stats.levels} pinned={stats.pinned_entries} />
          </>
        )}
      </Show>
      <div class="columns">
        <section class="hot">
          <h2>{t('hot_keys')}</h2>
          <Show of={hot}>{(list) => <Hot list={list} />}</Show>
        </section>
        <div class="stack">
          <LookUp />
          <Invalidate kinds={stats.data?.kinds ?? []} onDone={again} />
          <Warm onDone={again} />
        </div>
      </div>
    </View>
  );
}

/** `3 failed · 1 refused`, without those that there are none of. */
function notes(...counted: [count: number, word: 'n_failed' | 'n_refused' | 'n_loading' | 'n_waiting'][]): string {
  return counted
    .filter(([count]) => count > 0)
    .map(([n, word]) => t(word, { n }))
    .join(' · ');
}

function Figures({ stats }: { stats: Stats }) {
  const { rates } = metrics.value;
  const now = rates.at(-1);
  const lately = rates.findLast((one) => one.hitRatio !== undefined)?.hitRatio;
  const absent = stats.levels.find((level) => level.level === 'absent')?.hits ?? 0;
  return (
    <section class="figures" aria-label={t('cache')}>
      <Figure
        name={t('hit_ratio')}
        value={stats.hit_ratio === undefined ? '–' : percent(stats.hit_ratio)}
        note={lately === undefined ? t('since_start') : t('lately', { value: percent(lately) })}
      >
        <Sparkline values={rates.flatMap((one) => one.hitRatio ?? [])} class="good" />
      </Figure>
      <Figure name={t('reads')} value={number(stats.reads)} note={now ? t('per_second', { n: number(now.reads) }) : t('since_start')}>
        <Sparkline values={rates.map((one) => one.reads)} />
      </Figure>
      <Figure
        name={t('loads')}
        value={number(stats.loads)}
        note={notes([stats.loads_failed, 'n_failed'], [stats.loads_refused, 'n_refused'], [stats.loading, 'n_loading']) || t('none_failed')}
        tone={stats.loads_failed + stats.loads_refused > 0 ? 'bad' : ''}
      />
      <Figure name={t('joined')} value={number(stats.joined)} note={notes([stats.waiting, 'n_waiting']) || t('joined_note')} />
      <Figure name={t('stale_served')} value={number(stats.stale_served)} note={t('stale_note')} />
      <Figure name={t('absent_served')} value={number(absent)} note={t('absent_note')} />
    </section>
  );
}

function noteOf(level: Level, pinned: number): string {
  switch (level.level) {
    case 'memory':
      return level.state === 'off' ? t('cache_off') : t('n_pinned', { n: pinned });
    case 'disk':
      if (level.state === 'off') return t('disk_off');
      return t(level.state === 'closed' ? 'disk_closed' : 'disk_note');
    default:
      return t('absent_level_note');
  }
}

/** How much of its limit a level takes; only the number where it has none. */
function Filled({ value, most, format }: { value: number | undefined; most: number | undefined; format: (value: number) => string }) {
  if (value === undefined) return <>–</>;
  if (!most) return <>{format(value)}</>;
  const text = t('n_of_m', { n: format(value), m: format(most) });
  return (
    <>
      {format(value)} <span class="quiet excerpt limit">/ {format(most)}</span>
      <Meter percent={(value / most) * 100} label={text} />
    </>
  );
}

function Levels({ levels, pinned }: { levels: Level[]; pinned: number }) {
  return (
    <Table
      caption={t('levels')}
      rows={levels}
      keyOf={(level) => level.level}
      columns={[
        {
          head: t('level'),
          cell: (level) => (
            <>
              {wordOf('level', level.level)}
              <p class="quiet excerpt">{noteOf(level, pinned)}</p>
            </>
          ),
        },
        { head: t('state'), kind: 'wide', cell: (level) => <State of="level_state" name={level.state} /> },
        {
          head: t('entries'),
          kind: 'number',
          cell: (level) => <Filled value={level.entries} most={level.entries_max} format={number} />,
        },
        {
          head: t('bytes'),
          kind: 'number',
          // What was written to disk since the start is not what lies there: no share of its room.
          cell: (level) => <Filled value={level.bytes} most={level.level === 'disk' ? undefined : level.bytes_max} format={size} />,
        },
        { head: t('hits'), kind: 'number', cell: (level) => number(level.hits) },
      ]}
    />
  );
}

function Hot({ list }: { list: HotKeys }) {
  const window = took(list.window_seconds * 1000);
  return (
    <Table
      caption={t('hot_keys')}
      rows={list.items.map((hot, at) => ({ ...hot, rank: at + 1 }))}
      keyOf={(hot) => hot.key}
      empty={t('no_hot_keys', { n: list.reads_min, time: window })}
      columns={[
        { head: t('rank'), kind: 'number', cell: (hot) => number(hot.rank) },
        {
          head: t('key'),
          cell: (hot) => (
            <span class="long">
              <Link to={`/cache/${part(hot.key)}`} class="code">
                {hot.key}
              </Link>{' '}
              {hot.pinned && <State of="level" name="pinned" />}
            </span>
          ),
        },
        { head: t('reads_in', { time: window }), kind: 'number', cell: (hot) => `≈ ${number(hot.reads)}` },
      ]}
    />
  );
}
