// A series by day as bars: to be seen at a glance, pointed at for one day, and read out as a whole.

import { day, number } from './words';

const HEIGHT = 180;
const WIDTH = 720;
const GAP_SHARE = 0.22;

export interface Bar {
  /** `2026-11-11` */
  date: string;
  value: number;
  /** What a pointer on the bar says. */
  text: string;
}

const STEPS = [1, 1.2, 1.6, 2, 3, 4, 6, 8, 10];

/** The next number above that is easily read, and its half as well. */
function topOf(value: number): number {
  if (value <= 2) return 2;
  const zeros = 10 ** Math.floor(Math.log10(value));
  return STEPS.map((step) => step * zeros).find((top) => top >= value) ?? value;
}

interface ChartProps {
  bars: Bar[];
  label: string;
  /** How a value is written beside the axis. */
  format?: (value: number) => string;
}

export function BarChart({ bars, label, format = number }: ChartProps) {
  const top = topOf(Math.max(...bars.map((bar) => bar.value), 0));
  const slot = WIDTH / Math.max(bars.length, 1);
  const [first, last] = [bars[0], bars.at(-1)];
  return (
    <figure class="chart bars">
      <ul class="axis" aria-hidden="true">
        {[top, top / 2, 0].map((value) => (
          <li key={value}>{format(value)}</li>
        ))}
      </ul>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
        {[0, 0.5].map((share) => (
          <line key={share} x1={0} x2={WIDTH} y1={HEIGHT * share} y2={HEIGHT * share} />
        ))}
        {bars.map((bar, at) => {
          const height = (bar.value / top) * HEIGHT;
          return (
            <g key={bar.date}>
              <title>{bar.text}</title>
              {/* The whole height can be pointed at, however small the bar is. */}
              <rect class="slot" x={at * slot} y={0} width={slot} height={HEIGHT} />
              <rect
                class="value"
                x={(at + GAP_SHARE / 2) * slot}
                y={HEIGHT - height}
                width={slot * (1 - GAP_SHARE)}
                height={height}
              />
            </g>
          );
        })}
      </svg>
      <figcaption class="quiet">
        <span>{first && day(first.date)}</span>
        <span>{last && last !== first && day(last.date)}</span>
      </figcaption>
    </figure>
  );
}
