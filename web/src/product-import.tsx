// A catalogue from a file of a spreadsheet program, and the report of what was taken.

import { useState } from 'preact/hooks';
import { api, ask, invalid } from './api';
import type { Schemas } from './api';
import { Fact, Facts, Field, Form, say, Table, View } from './ui';
import { number, reasonText, t, wordOf } from './words';

type Report = Schemas['ImportView'];

export function ImportProducts() {
  const [report, setReport] = useState<Report | undefined>(undefined);
  const send = async (data: FormData) => {
    const file = data.get('file');
    if (!(file instanceof File) || file.name === '') throw invalid('file', t('is_required'));
    setReport(undefined);
    const done = await ask(
      api.POST('/api/v1/products/import', {
        // The file itself goes out, so that a catalogue of any size is never read whole into the page.
        body: file.name,
        bodySerializer: () => file,
        headers: { 'Content-Type': 'text/csv' },
      }),
    );
    setReport(done);
    say(outcomeOf(done));
  };
  return (
    <View title={t('import_title')} back="/products">
      <p class="quiet lead">{t('import_hint')}</p>
      <Form class="card" submit={t('import_go')} busy={t('importing')} onSubmit={send}>
        <Field name="file" label={t('import_file')}>
          <input type="file" accept=".csv,.txt,.tsv,text/csv,text/tab-separated-values,text/plain" required />
        </Field>
      </Form>
      {report && <ReportOf report={report} />}
    </View>
  );
}

/** What happened, in one sentence: that a file was read does not mean that anything came of it. */
function outcomeOf(report: Report): string {
  if (report.read === 0) return t('import_no_rows');
  const taken = report.created + report.updated + report.unchanged;
  return taken === 0 ? t('import_nothing', { failed: report.failed }) : t('import_done', counts(report));
}

function counts({ created, updated, unchanged, failed }: Report) {
  return { created, updated, unchanged, failed };
}

function ReportOf({ report }: { report: Report }) {
  return (
    <section class="card" aria-live="polite">
      <Facts>
        <Fact name={t('rows_read')}>{number(report.read)}</Fact>
        <Fact name={t('rows_created')}>{number(report.created)}</Fact>
        <Fact name={t('rows_updated')}>{number(report.updated)}</Fact>
        <Fact name={t('rows_unchanged')}>{number(report.unchanged)}</Fact>
        <Fact name={t('rows_failed')}>{number(report.failed)}</Fact>
        <Fact name={t('import_read_as')}>
          {t('import_encoding', { encoding: report.encoding, delimiter: wordOf('delimiter', report.delimiter) })}
        </Fact>
      </Facts>
      {report.failed > 0 && (
        <>
          <h2>{t('import_some_failed', { n: report.failed })}</h2>
          <Table
            caption={t('import_some_failed', { n: report.failed })}
            rows={report.errors}
            keyOf={(error) => `${error.line} ${error.field} ${error.reason}`}
            columns={[
              { head: t('line'), kind: 'number', cell: (error) => number(error.line) },
              { head: t('column'), cell: (error) => <code>{error.field}</code> },
              { head: t('reason'), cell: (error) => reasonText(error.reason) },
            ]}
          />
          {report.errors.length < report.failed && (
            <p class="quiet">{t('import_more', { n: report.errors.length })}</p>
          )}
        </>
      )}
    </section>
  );
}
