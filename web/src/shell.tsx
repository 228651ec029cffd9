// The frame around every view: where one can go, who is logged in, which language.

import type { ComponentChildren } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { logOut } from './api';
import type { User } from './api';
import { Link, place } from './router';
import { Messages } from './ui';
import { language, speak, t, wordOf } from './words';
import type { Word } from './words';

const PLACES: [path: string, word: Word, icon: string][] = [
  ['/', 'overview', 'M3 13h6V3H3zm0 8h6v-6H3zm8 0h10V11H11zm0-18v6h10V3z'],
  ['/sales', 'sales', 'M13 2 4 14h6l-1 8 10-13h-7z'],
  ['/products', 'products', 'M12 2 3 6.500v11L12 22l9-4.500v-11zM5 8.500l6 3v7.800l-6-3zm14 7.800-6 3v-7.800l6-3z'],
  ['/orders', 'orders', 'M5 2h14v20l-3-2-2 2-2-2-2 2-2-2-3 2zm3 5v2h8V7zm0 4v2h8v-2z'],
  ['/users', 'users', 'M9 11a4 4 0 1 0 0-8 4 4 0 0 0 0 8m0 2c-4 0-7 2-7 5v2h14v-2c0-3-3-5-7-5m8-2a3 3 0 1 0-1.500-5.600A6 6 0 0 1 15 10.300c.6.400 1.300.7 2 .7m1 2.200c1.300 1.200 2 2.800 2 4.800v2h2v-2.500c0-2.200-1.600-3.800-4-4.300'],
  ['/keys', 'keys', 'M14 2a7 7 0 0 0-6.700 9L2 16.300V22h5.700v-3H11v-3h2.300l.6-.6H14A7 7 0 0 0 14 2m2.500 3A2.500 2.500 0 1 1 16.500 10a2.500 2.500 0 0 1 0-5'],
];

export function Mark() {
  return (
    <span class="mark">
      <svg viewBox="0 0 32 32" aria-hidden="true">
        <rect width="32" height="32" rx="8" />
        <path d="M7 21c4.500 0 5-10 9.500-10 3.200 0 3.600 4.500 1.300 4.500M7 25h18M19 21h6" />
      </svg>
      Onrush
    </span>
  );
}

export function LanguageSwitch() {
  return (
    <div class="languages" role="group" aria-label={t('language')}>
      <button type="button" lang="en" aria-pressed={language.value === 'en'} onClick={() => speak('en')}>
        EN
      </button>
      <button type="button" lang="zh-CN" aria-pressed={language.value === 'zh'} onClick={() => speak('zh')}>
        中文
      </button>
    </div>
  );
}

export function Shell({ user, children }: { user: User; children: ComponentChildren }) {
  const [isMenuOpen, setMenuOpen] = useState(false);
  const { path } = place.value;
  useEffect(() => setMenuOpen(false), [path]);
  const isHere = (to: string) => (to === '/' ? path === '/' : path === to || path.startsWith(`${to}/`));
  return (
    <div class={`shell ${isMenuOpen ? 'menu-open' : ''}`} onKeyDown={(event) => event.key === 'Escape' && setMenuOpen(false)}>
      <a class="skip" href="#main">
        {t('skip')}
      </a>
      <header class="top">
        <Mark />
        <button
          type="button"
          class="menu-button"
          aria-expanded={isMenuOpen}
          aria-controls="menu"
          onClick={() => setMenuOpen(!isMenuOpen)}
        >
          <svg viewBox="0 0 24 24" aria-hidden="true">
            <path d={isMenuOpen ? 'M5 5l14 14M19 5 5 19' : 'M4 6h16M4 12h16M4 18h16'} />
          </svg>
          <span class="unseen">{t('menu')}</span>
        </button>
      </header>
      <div class="side" id="menu">
        <nav aria-label={t('main_navigation')}>
          <ul>
            {PLACES.map(([to, word, icon]) => (
              <li key={to}>
                <Link to={to} current={isHere(to)} onClick={() => setMenuOpen(false)}>
                  <svg viewBox="0 0 24 24" aria-hidden="true">
                    <path d={icon} />
                  </svg>
                  {t(word)}
                </Link>
              </li>
            ))}
          </ul>
        </nav>
        <div class="side-foot">
          <a href="/docs">{t('docs')}</a>
          <LanguageSwitch />
          <p class="who">
            <b>{user.name}</b>
            <span>{wordOf('role', user.role)}</span>
          </p>
          <button type="button" class="small" onClick={() => void logOut()}>
            {t('log_out')}
          </button>
        </div>
      </div>
      <main id="main" tabIndex={-1}>
        {children}
      </main>
      <Messages />
    </div>
  );
}
